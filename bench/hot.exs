Code.require_file("hot_baseline.exs", __DIR__)

defmodule Bench.Hot do
  @moduledoc false

  alias Bench.HotBaseline
  alias BeamDeploy.HotUpgrade.{Beam, Scan}

  @full for(
          processes <- [100, 10_000, 100_000],
          modules <- [20, 500, 1_500],
          do: {processes, modules}
        )
  @quick [{10_000, 500}]
  # A release of a larger application: 60 libraries, 3,000 beams.
  @release_modules 3_000
  @kept [~c"AtU8", ~c"Code", ~c"StrT", ~c"ImpT", ~c"ExpT", ~c"FunT", ~c"LitT", ~c"Attr", ~c"Line"]

  def run(arguments) do
    {options, []} = OptionParser.parse!(arguments, strict: [quick: :boolean, rounds: :integer])
    cases = if options[:quick], do: @quick, else: @full
    rounds = options[:rounds] || 3
    dir = Path.join(System.tmp_dir!(), "beam_deploy_bench_hot_#{System.pid()}")

    try do
      pool = pool()
      plan_ratio = plan(Path.join(dir, "plan"), pool, rounds + 2)

      results =
        for {processes, modules} <- cases,
            do: {{processes, modules}, hot(dir, pool, processes, modules, rounds)}

      {_case, %{pause: pause, load: load}} = List.keyfind(results, {10_000, 500}, 0)
      IO.puts("\nRESULT pause_ratio=#{pause} plan_ratio=#{plan_ratio} load_ratio=#{load}")
    after
      File.rm_rf!(dir)
    end
  end

  # --- plan

  defp plan(dir, pool, rounds) do
    first = release(dir, "first", pool, @release_modules, 1)
    second = release(dir, "second", pool, @release_modules, 2)
    {:ok, scan} = Scan.read(first.tarball, :all)
    by_name = Map.new(scan.modules, &{&1.name, &1.md5})
    by_module = Map.new(by_name, fn {name, md5} -> {String.to_atom(name), md5} end)
    # The first try of the native digests is at the start of a node, not in a plan.
    true = Beam.native?()

    samples =
      for round <- 0..rounds do
        {base, changed} =
          HotBaseline.timed(fn ->
            HotBaseline.plan(second.tarball, Path.join(dir, "x#{round}"), by_module)
          end)

        {ours, {:ok, scanned}} = HotBaseline.timed(fn -> Scan.read(second.tarball, by_name) end)
        different = for %{facts: _, name: name} <- scanned.modules, do: name

        true =
          Enum.sort(different) == changed |> Enum.map(&Atom.to_string(elem(&1, 0))) |> Enum.sort()

        {base, ours}
      end

    # The first round fills the page cache.
    {base, ours} = samples |> tl() |> Enum.unzip()
    size = Float.round(File.stat!(second.tarball).size / 1.0e6, 1)

    IO.puts(
      "plan, #{@release_modules} modules of which a tenth differs, #{size} MB, medians of #{rounds}:"
    )

    IO.puts(
      "  straightforward #{ms(median(base))}   ours #{ms(median(ours))}   ratio #{ratio(ours, base)}\n"
    )

    ratio(ours, base)
  end

  # --- hot

  defp hot(dir, pool, processes, modules, rounds) do
    dir = Path.join(dir, "#{processes}x#{modules}")
    bench_app(dir, pool, modules)

    samples =
      for _round <- 1..rounds, way <- ["baseline", "ours"] do
        {way, once(way, dir, processes)}
      end

    figures = fn way, key -> for {^way, figures} <- samples, do: Map.fetch!(figures, key) end
    both = fn key -> {figures.("ours", key), figures.("baseline", key)} end

    IO.puts("#{processes} processes, #{modules} changed modules, medians of #{rounds}:")

    ratios =
      for {key, label} <- [
            wait: "longest wait of a caller",
            pause: "pause",
            load: "load in the pause",
            total: "total"
          ],
          into: %{} do
        {ours, base} = both.(key)

        IO.puts(
          "  #{String.pad_trailing(label, 26)} straightforward #{ms(median(base))}   ours #{ms(median(ours))}   ratio #{ratio(ours, base)}"
        )

        {key, ratio(ours, base)}
      end

    phases =
      for phase <- [:plan, :stage, :suspend, :load, :migrate, :resume, :refresh],
          do: "#{phase} #{String.trim(ms(median(figures.("ours", phase))))}"

    IO.puts("  ours: " <> Enum.join(phases, ", "))
    %{pause: ratios.wait, load: ratios.load}
  end

  defp once(way, dir, processes) do
    ebin = Path.join(Mix.Project.build_path(), "lib/beam_deploy/ebin")
    script = Path.join(__DIR__, "hot_once.exs")
    # So many processes need a larger table than the default one.
    arguments = ["--erl", "+P 1000000", "-pa", ebin, script, way, dir, "#{processes}"]
    {output, 0} = System.cmd("elixir", arguments, stderr_to_stdout: true)

    case Regex.run(~r/^FIGURES (.*)$/m, output) do
      [_, figures] -> figures |> Code.eval_string() |> elem(0)
      nil -> raise "no figures:\n#{output}"
    end
  end

  # --- releases made of the platform's own modules, under other names

  # Without the smallest ones: the modules of an application that change are views, contexts and servers. What remains
  # has the mean size of a stripped module of a release.
  @smallest 6_000

  defp pool do
    for app <- [:stdlib, :compiler, :elixir, :mix, :kernel],
        path <- Path.wildcard("#{:code.lib_dir(app)}/ebin/*.beam"),
        {:ok, _module, chunks} = :beam_lib.all_chunks(String.to_charlist(path)),
        # As `mix release` strips.
        chunks = Enum.filter(chunks, fn {id, _} -> id in @kept end),
        {:ok, stripped} = :beam_lib.build_module(chunks),
        byte_size(stripped) > @smallest,
        not on_load?(stripped),
        do: chunks
  end

  defp on_load?(beam) do
    {:ok, facts} = BeamDeploy.Native.beam_facts(beam)
    facts.on_load
  end

  # The first atom is the module's name. A longer string table makes another MD5 of the same code.
  defp variant(chunks, name, version) do
    {~c"AtU8", <<count::32, length, _old::binary-size(length), atoms::binary>>} =
      List.keyfind(chunks, ~c"AtU8", 0)

    {~c"StrT", strings} = List.keyfind(chunks, ~c"StrT", 0)
    name = Atom.to_string(name)

    {:ok, beam} =
      chunks
      |> List.keyreplace(
        ~c"AtU8",
        0,
        {~c"AtU8", <<count::32, byte_size(name), name::binary, atoms::binary>>}
      )
      |> List.keyreplace(~c"StrT", 0, {~c"StrT", strings <> "version #{version}"})
      |> :beam_lib.build_module()

    beam
  end

  defp modules(pool, count), do: pool |> Stream.cycle() |> Stream.with_index() |> Enum.take(count)

  # A whole release: in the second version every tenth module is another one.
  defp release(dir, name, pool, count, version) do
    libraries = 60

    files =
      for {chunks, index} <- modules(pool, count) do
        own_version = if rem(index, 10) == 0, do: version, else: 1
        library = "lib_#{rem(index, libraries)}-1.0.0"

        {"lib/#{library}/ebin/bench_#{index}.beam",
         variant(chunks, :"bench_#{index}", own_version)}
      end

    %{tarball: tar(Path.join(dir, name), files)}
  end

  # One application, of which all modules change. It is what the VM of a round has and is upgraded to.
  defp bench_app(dir, pool, count) do
    names = fn index -> :"bench_#{index}" end

    build = fn version ->
      files =
        for {chunks, index} <- modules(pool, count - 1),
            do: {names.(index), variant(chunks, names.(index), version)}

      [{:bench_server, server(version)} | files]
    end

    write = fn name, version ->
      built = build.(version)

      app =
        :io_lib.format(~c"~tp.~n", [
          {:application, :bench_app,
           [
             vsn: ~c"1.0.0",
             modules: Enum.map(built, &elem(&1, 0)),
             applications: [:kernel, :stdlib]
           ]}
        ])

      files = for {module, beam} <- built, do: {"lib/bench_app-1.0.0/ebin/#{module}.beam", beam}

      tar(Path.join(dir, name), [
        {"lib/bench_app-1.0.0/ebin/bench_app.app", app} | files ++ description()
      ])

      built
    end

    write.("first", 1)
    built = write.("second", 2)
    md5s = for {module, beam} <- built, do: {module, elem(elem(:beam_lib.md5(beam), 1), 1)}
    File.write!(Path.join(dir, "second.md5s"), :erlang.term_to_binary(md5s))
  end

  defp description do
    apps =
      for {app, version} <- [bench_app: "1.0.0", beam_deploy: "0.1.0"],
          do: {app, String.to_charlist(version), :permanent}

    rel = {:release, {~c"bench_app", ~c"1.0.0"}, {:erts, :erlang.system_info(:version)}, apps}

    [
      {"releases/1.0.0/bench_app.rel", :io_lib.format(~c"~tp.~n", [rel])},
      {"releases/start_erl.data", "#{:erlang.system_info(:version)} 1.0.0"}
    ]
  end

  defp server(version) do
    source = fn body -> ~s|
      -module(bench_server).
      -behaviour(gen_server).
      -vsn("#{version}").
      -export([init/1, handle_call/3, handle_cast/2, code_change/3]).
      init(Id) -> {ok, {state, Id, lists:seq(1, 20)}}.
      handle_call(get, _From, State) -> {reply, State, State}.
      handle_cast(_, State) -> {noreply, State}.
      code_change(_Old, State, _Extra) -> #{body}.
    | end

    body = if version == 1, do: "{ok, State}", else: "{ok, {converted, State}}"

    forms =
      source.(body)
      |> String.split(~r/\.\s*\n/, trim: true)
      |> Enum.reject(&(String.trim(&1) == ""))
      |> Enum.map(&form/1)

    {:ok, :bench_server, beam} = :compile.forms(forms, [])
    beam
  end

  defp form(text) do
    {:ok, tokens, _} = :erl_scan.string(String.to_charlist(text <> "."))
    {:ok, form} = :erl_parse.parse_form(tokens)
    form
  end

  # The tree, and the tarball beside it.
  defp tar(root, files) do
    for {path, contents} <- files do
      path = Path.join(root, path)
      File.mkdir_p!(Path.dirname(path))
      File.write!(path, contents)
    end

    tarball = root <> ".tar.gz"

    entries =
      for {path, _contents} <- files,
          do: {String.to_charlist(path), String.to_charlist(Path.join(root, path))}

    :ok = :erl_tar.create(String.to_charlist(tarball), entries, [:compressed])
    tarball
  end

  # --- figures

  defp median(values), do: values |> Enum.sort() |> Enum.at(div(length(values), 2))
  defp ratio(ours, base), do: Float.round(median(ours) / median(base), 3)
  defp ms(value), do: String.pad_leading("#{Float.round(value / 1, 1)} ms", 11)
end

Bench.Hot.run(System.argv())
