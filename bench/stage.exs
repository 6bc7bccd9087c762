defmodule Bench.Stage do
  @moduledoc false

  alias BeamDeploy.Release
  alias BeamDeploy.Release.{Archive, Store}

  @applications 58
  @beams 3_030
  @others 310
  # The smallest beams of OTP are smaller than those of an application: without them the size comes out right.
  @smallest 6_500

  def run(arguments) do
    {options, []} = OptionParser.parse!(arguments, strict: [rounds: :integer, dir: :string])
    rounds = Keyword.get(options, :rounds, 7)
    parent = Keyword.get(options, :dir, System.tmp_dir!())
    dir = Path.join(parent, "beam_deploy_bench_#{System.pid()}")

    try do
      measure(dir, rounds)
    after
      File.rm_rf!(dir)
    end
  end

  defp measure(dir, rounds) do
    first = make_tarball(dir, "1.0.0")
    second = make_tarball(dir, "1.1.0")
    {:ok, base} = Release.read(make_base(dir))
    {:ok, store} = Store.open(Path.join(dir, "store"), base)
    {:ok, previous} = Archive.stage(first, store, otp_app: :bench_app, link_from: nil)
    describe(second, previous)

    # Nothing is deleted in between: on ext4 that would make the next files many times as dear.
    jobs = [
      read: fn _round -> {:ok, _metadata} = Archive.inspect_release(second) end,
      read: fn _round -> {:ok, _metadata} = Archive.inspect_release(second) end,
      erl_tar: fn round -> erl_tar(second, Path.join([dir, "erl_tar", "#{round}"])) end,
      fresh: fn round -> ours(second, dir, base, nil, "fresh#{round}") end,
      linked: fn round -> ours(second, store, previous.root, round) end
    ]

    samples =
      for round <- 0..rounds, {name, job} <- rotate(jobs, round) do
        {wall, cpu} = timed(fn -> job.(round) end)
        {round, name, wall, cpu}
      end

    sync = for round <- 1..rounds, do: sync_after(second, dir, base, "sync#{round}")

    # The first round fills the page cache.
    report(
      for({round, name, wall, cpu} <- samples, round > 0, do: {name, wall, cpu}),
      sync,
      rounds
    )
  end

  defp rotate(jobs, round) do
    {ahead, behind} = Enum.split(jobs, rem(round, length(jobs)))
    behind ++ ahead
  end

  defp erl_tar(tarball, dir) do
    File.mkdir_p!(dir)

    :ok =
      :erl_tar.extract(String.to_charlist(tarball), [:compressed, cwd: String.to_charlist(dir)])
  end

  # A store of its own: an identical release in one store would be recognised.
  defp ours(tarball, dir, base, link_from, name) do
    {:ok, store} = Store.open(Path.join([dir, "stores", name]), base)
    {:ok, _release} = Archive.stage(tarball, store, otp_app: :bench_app, link_from: link_from)
    store
  end

  # The staged release moves away, so that the next round finds none.
  defp ours(tarball, store, link_from, round) do
    {:ok, release} = Archive.stage(tarball, store, otp_app: :bench_app, link_from: link_from)
    :ok = File.rename(release.root, Path.join([store.dir, "staging", "linked#{round}"]))
  end

  defp sync_after(tarball, dir, base, name) do
    :ok = BeamDeploy.Native.sync_file_system(dir)
    store = ours(tarball, dir, base, nil, name)
    {wall, _cpu} = timed(fn -> :ok = BeamDeploy.Native.sync_file_system(store.dir) end)
    wall
  end

  defp timed(job) do
    {cpu_before, _} = :erlang.statistics(:runtime)
    {wall, _result} = :timer.tc(job)
    {cpu_after, _} = :erlang.statistics(:runtime)
    {wall / 1000, cpu_after - cpu_before}
  end

  defp report(samples, sync, rounds) do
    names = [
      erl_tar: ":erl_tar",
      read: "read to the end (floor)",
      fresh: "stage, all written",
      linked: "stage, equal files linked"
    ]

    base = median(for {:erl_tar, wall, _cpu} <- samples, do: wall)

    IO.puts("#{rounds} rounds, medians\n")
    row("", "wall ms", "CPU ms", "ratio", "min ms", "max ms")

    medians =
      for {name, label} <- names do
        walls = for {^name, wall, _cpu} <- samples, do: wall
        cpu = median(for {^name, _wall, cpu} <- samples, do: cpu)
        wall = median(walls)

        row(
          label,
          round1(wall),
          cpu,
          Float.round(wall / base, 3),
          round1(Enum.min(walls)),
          round1(Enum.max(walls))
        )

        {name, wall}
      end

    row(
      "syncfs at promotion",
      round1(median(sync)),
      "",
      "",
      round1(Enum.min(sync)),
      round1(Enum.max(sync))
    )

    fresh = Float.round(medians[:fresh] / base, 3)
    linked = Float.round(medians[:linked] / base, 3)

    IO.puts(
      "\nRESULT stage_ratio=#{fresh} stage_ratio_linked=#{linked} erl_tar_ms=#{round1(base)} rounds=#{rounds}"
    )
  end

  defp row(label, wall, cpu, ratio, min, max) do
    cells = Enum.map([wall, cpu, ratio, min, max], &String.pad_leading("#{&1}", 10))
    IO.puts(String.pad_trailing(label, 28) <> Enum.join(cells))
  end

  defp median(numbers), do: numbers |> Enum.sort() |> Enum.at(div(length(numbers), 2))
  defp round1(number), do: Float.round(number * 1.0, 1)

  # --- the release: beams of OTP and Elixir, several times over

  defp make_tarball(dir, version) do
    File.mkdir_p!(dir)
    path = Path.join(dir, "bench-#{version}.tar.gz")
    :ok = :erl_tar.create(String.to_charlist(path), entries(version), [:compressed])
    path
  end

  defp entries(version) do
    beams =
      for {source, number} <- beams() |> Stream.cycle() |> Enum.take(@beams) |> Enum.with_index() do
        application = rem(number, @applications)
        {~c"lib/dep#{application}-1.0.0/ebin/M#{number}.beam", contents(source, number, version)}
      end

    others =
      for number <- 1..@others do
        application = rem(number, @applications)

        text =
          String.duplicate(
            "asset #{number} #{:erlang.phash2(number)}\n",
            20 + rem(number * 37, 900)
          )

        {~c"lib/dep#{application}-1.0.0/priv/static/asset#{number}.txt", text}
      end

    erts = "#{:erlang.system_info(:version)}"
    emulator = Path.join(:code.root_dir(), "erts-#{erts}/bin/beam.smp")

    [{~c"erts-#{erts}/bin/beam.smp", File.read!(emulator)}] ++
      beams ++ others ++ metadata(version, erts)
  end

  # One beam in fifty differs from the release before.
  defp contents(source, number, version) do
    beam = stripped(source)
    if rem(number, 50) == 0, do: beam <> "version #{version}", else: beam
  end

  # As `mix release` puts them into a release. Some distributions compress theirs.
  defp stripped(source) do
    case Process.get(source) do
      nil ->
        {:ok, {_module, beam}} = :beam_lib.strip(File.read!(source))
        beam = if match?(<<0x1F, 0x8B, _rest::binary>>, beam), do: :zlib.gunzip(beam), else: beam
        Process.put(source, beam)
        beam

      beam ->
        beam
    end
  end

  defp metadata(version, erts) do
    applications =
      Enum.map_join(["kernel", "stdlib", "beam_deploy", "bench_app"], ",", &~s({#{&1},"1.0.0"}))

    rel = ~s({release,{"bench_app","#{version}"},{erts,"#{erts}"},[#{applications}]}.\n)

    [
      {~c"lib/beam_deploy-1.0.0/ebin/beam_deploy.app", "{application,beam_deploy,[]}."},
      {~c"lib/bench_app-#{version}/ebin/bench_app.app", "{application,bench_app,[]}."},
      {~c"releases/#{version}/bench_app.rel", rel},
      {~c"releases/start_erl.data", "#{erts} #{version}"}
    ]
  end

  defp make_base(dir) do
    root = Path.join(dir, "base")
    erts = "#{:erlang.system_info(:version)}"

    for {path, contents} <- metadata("0.9.0", erts) do
      full = Path.join(root, path)
      File.mkdir_p!(Path.dirname(full))
      File.write!(full, contents)
    end

    root
  end

  defp beams do
    [:code.lib_dir(), Application.app_dir(:elixir, "..")]
    |> Enum.flat_map(&Path.wildcard(Path.join(&1, "*/ebin/*.beam")))
    |> Enum.uniq()
    |> Enum.filter(&(byte_size(stripped(&1)) >= @smallest))
  end

  defp describe(tarball, release) do
    files = release.root |> Path.join("**") |> Path.wildcard() |> Enum.filter(&File.regular?/1)
    size = files |> Enum.map(&File.stat!(&1).size) |> Enum.sum()
    libraries = release.root |> Path.join("lib") |> File.ls!() |> length()

    IO.puts(
      "#{megabytes(File.stat!(tarball).size)} MB gz, #{megabytes(size)} MB, #{length(files)} files, " <>
        "#{libraries} applications; Erlang/OTP #{System.otp_release()}, #{System.schedulers_online()} cores"
    )
  end

  defp megabytes(bytes), do: Float.round(bytes / 1_000_000, 1)
end

Bench.Stage.run(System.argv())
