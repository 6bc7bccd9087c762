defmodule Bench.Swap do
  # See bench/swap.

  alias Bench.Swap.{Client, Json, Memory, Server}
  alias BeamDeploy.Test.SampleRelease

  @switches [
    swaps: :integer,
    control_swaps: :integer,
    rate: :integer,
    pause_ms: :integer,
    delay_ms: :integer,
    only: :string
  ]
  @versions ["0.2.0", "0.1.0"]

  def main(arguments) do
    {options, [], []} = OptionParser.parse(arguments, strict: @switches)
    swaps = Keyword.get(options, :swaps, 20)

    settings = %{
      rate: Keyword.get(options, :rate, 500),
      pause: Keyword.get(options, :pause_ms, 1_000),
      delay: Keyword.get(options, :delay_ms, 0),
      directory: Path.join(System.tmp_dir!(), "bench_swap_#{System.pid()}")
    }

    File.mkdir_p!(settings.directory)

    ways =
      if only = options[:only],
        do: [String.to_existing_atom(only)],
        else: [:ours, :overlap, :restart]

    controls = Keyword.get(options, :control_swaps, min(swaps, 10))

    results =
      for way <- ways do
        run(way, if(way == :ours, do: swaps, else: controls), settings)
      end

    report(Map.new(results, &{&1.way, &1}), results)

    if failed?(results) do
      IO.puts("The logs are in #{settings.directory}")
      exit({:shutdown, 1})
    end

    File.rm_rf!(settings.directory)
  end

  defp run(way, swaps, settings) do
    IO.puts("#{way}: #{swaps} swaps, 2 x #{settings.rate} requests/s, delay #{settings.delay} ms")
    server = Server.start(way, settings)

    try do
      client = Client.start(server, settings, swaps)
      Process.sleep(settings.pause)
      swapped = Enum.map(1..swaps, &swap(way, &1, server, client, settings))
      answer = Client.stop(client)
      result(way, swaps, swapped, Json.decode(answer))
    after
      Server.stop(server)
    end
  end

  defp swap(way, number, server, client, settings) do
    version = Enum.at(@versions, rem(number - 1, 2))
    Client.mark(client, "swap-start")
    started = now()
    outcome = exchange(way, server, version)
    elapsed = now() - started
    if way == :ours, do: Client.mark(client, "cutover #{version}")
    Client.mark(client, "swap-end")
    if outcome != :ok, do: IO.puts("swap #{number} failed: #{inspect(outcome)}")
    Process.sleep(settings.pause)

    phases =
      if way == :restart,
        do: [],
        else: Server.call(server, BeamDeploy, :info, []).last_swap.phases

    memory = if way == :ours, do: Memory.read(server)
    %{outcome: outcome, ms: elapsed, phases: phases, memory: memory}
  end

  defp exchange(:restart, server, _version), do: Server.restart(server)

  # Its progress would be told to this terminal.
  defp exchange(_way, server, version) do
    {:ok, elsewhere} = StringIO.open("")

    Task.await(
      Task.async(fn ->
        true = Process.group_leader(self(), elsewhere)
        Server.call(server, BeamDeploy, :upgrade, [SampleRelease.tarball(version)])
      end),
      :infinity
    )
  end

  defp result(way, swaps, swapped, answer) do
    if answer["failed"] + answer["abandoned"] > 0 do
      IO.puts(
        "  failures: #{inspect(positive(answer["failures"]))} abandoned: #{answer["abandoned"]}"
      )

      if way == :ours do
        for {%{"failed" => failed} = window, number} when failed > 0 <-
              Enum.with_index(answer["windows"]["list"], 1),
            do:
              IO.puts(
                "  swap #{number}: #{failed} failed, #{window["start_ms"]}-#{window["end_ms"]} ms"
              )

        IO.inspect(answer["examples"], limit: :infinity, printable_limit: :infinity)
      end
    end

    %{
      way: way,
      swaps: swaps,
      refused: Enum.count(swapped, &(&1.outcome != :ok)),
      requests: answer["requests"],
      failed: answer["failed"] + answer["abandoned"],
      modes: answer["modes"],
      gap: answer["longest_gap_ms"]["inside"],
      ms: median(Enum.map(swapped, & &1.ms)),
      phases: phases(swapped),
      memory: {Enum.at(swapped, 4, %{memory: nil}).memory, List.last(swapped).memory}
    }
  end

  defp phases(swapped) do
    for {phase, _ms} <- hd(swapped).phases,
        do: {phase, swapped |> Enum.map(& &1.phases[phase]) |> median()}
  end

  defp positive(counts), do: for({class, count} <- counts, count > 0, do: {class, count})

  defp report(by_way, results) do
    IO.puts(
      "\nway       swaps  requests    failed      p99 ms in/out: connect          keepalive      gap ms  swap ms"
    )

    for result <- results do
      IO.puts([
        String.pad_trailing("#{result.way}", 9),
        pad(result.swaps, 6),
        pad(result.requests, 10),
        pad(result.failed, 10),
        pad(p99(result, "connect"), 27),
        pad(p99(result, "keepalive"), 19),
        pad(result.gap, 12),
        pad(round(result.ms), 9)
      ])
    end

    for %{phases: [_ | _] = phases, way: way} <- results do
      IO.puts(
        "\n#{way}, median ms by phase: " <>
          Enum.map_join(phases, ", ", fn {phase, ms} -> "#{phase} #{ms}" end)
      )
    end

    ours = by_way[:ours]
    if ours, do: report_memory(ours)

    IO.puts(
      "RESULT swaps=#{ours && ours.swaps} requests=#{ours && ours.requests} ours_failed=#{ours && ours.failed} " <>
        "overlap_failed=#{by_way[:overlap] && by_way[:overlap].failed} " <>
        "restart_failed=#{by_way[:restart] && by_way[:restart].failed} " <>
        "p99_ratio=#{ours && ratio(ours)} upgrade_ms=#{ours && round(ours.ms)}"
    )
  end

  defp failed?(results),
    do: Enum.any?(results, &(&1.way == :ours and &1.failed + &1.refused > 0))

  defp report_memory(%{memory: {early, late}, swaps: swaps}) do
    if early,
      do:
        IO.puts("\nPSS in KiB after 5 swaps: #{inspect(early)}, after #{swaps}: #{inspect(late)}")
  end

  defp p99(result, mode) do
    latency = result.modes[mode]["latency_ms"]
    "#{latency["inside"]["p99"]}/#{latency["outside"]["p99"]}"
  end

  # The worse of the two kinds.
  defp ratio(result) do
    for(
      mode <- ["connect", "keepalive"],
      %{"inside" => %{"p99" => inside}, "outside" => %{"p99" => outside}} =
        result.modes[mode]["latency_ms"],
      do: inside / outside
    )
    |> Enum.max()
    |> Float.round(2)
  end

  defp pad(value, width), do: String.pad_leading("#{value}", width)

  defp median(values), do: values |> Enum.sort() |> Enum.at(div(length(values), 2))
  defp now, do: System.monotonic_time(:microsecond) / 1000
end

defmodule Bench.Swap.Server do
  # The release, started as an operator would.

  alias BeamDeploy.Test.{Http, SampleRelease, Wait}

  # It ends with this VM, however that ends.
  @shell """
  exec 3<&0
  "$@" </dev/null 3<&- >>"$LOG" 2>&1 &
  release=$!
  (while read -r _; do :; done; kill -9 $release) <&3 >/dev/null 2>&1 &
  wait $release
  """

  def start(way, settings) do
    root = SampleRelease.unpacked("0.1.0")
    name = :"#{way}_#{System.pid()}@127.0.0.1"
    port = Http.free_port()
    directory = Path.join(settings.directory, "#{way}")
    File.mkdir_p!(directory)
    listener = [{port, ip: if(settings.delay > 0, do: {0, 0, 0, 0}, else: {127, 0, 0, 1})}]

    environment =
      [
        {"LOG", Path.join(directory, "log")},
        {"BEAM_DEPLOY", if(way == :restart, do: "0", else: "1")},
        {"BEAM_DEPLOY_DIR", Path.join(directory, "store")},
        {"RELEASE_NODE", "#{name}"},
        {"RELEASE_DISTRIBUTION", "name"},
        {"RELEASE_TMP", Path.join(directory, "tmp")},
        {"SAMPLE_PORT", "#{port}"},
        {"SAMPLE_LISTENERS", inspect(%{"0.1.0" => listener, "0.2.0" => listener})}
      ] ++ if(way == :overlap, do: [{"SAMPLE_OVERLAP", "1"}], else: [])

    true =
      Node.set_cookie(
        name,
        root |> Path.join("releases/COOKIE") |> File.read!() |> String.to_atom()
      )

    server = %{root: root, name: name, port: port, directory: directory, environment: environment}
    boot(server)
  end

  def restart(server) do
    :ok = :erpc.call(server.name, :init, :stop, [])
    await_exit()
    _server = boot(server)
    :ok
  end

  defp boot(server) do
    shell =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :exit_status,
        args: ["-c", @shell, "sh", Path.join(server.root, "bin/sample"), "start"],
        env: for({name, value} <- server.environment, do: {to_charlist(name), to_charlist(value)})
      ])

    Process.put(__MODULE__, shell)

    Wait.until(fn -> match?({:ok, %{status: 200}}, Http.get(server.port, "/version")) end,
      timeout: 60_000
    )

    Wait.until(fn -> Node.connect(server.name) == true and ready?(server) end, timeout: 60_000)
    server
  end

  defp ready?(server) do
    case List.keyfind(server.environment, "BEAM_DEPLOY", 0) do
      {_, "0"} -> true
      _parent -> call(server, BeamDeploy, :peer_node, []) != nil
    end
  end

  def call(server, module, function, arguments),
    do: :erpc.call(server.name, module, function, arguments, 300_000)

  def stop(server) do
    if Node.connect(server.name) == true, do: :erpc.call(server.name, :init, :stop, [])
    await_exit()
  end

  defp await_exit do
    shell = Process.get(__MODULE__)

    receive do
      {^shell, {:exit_status, _status}} -> :ok
    after
      60_000 -> raise "the release does not stop"
    end
  end
end

defmodule Bench.Swap.Client do
  # The load client: marks go to its standard input, its result comes as one line.

  @longest_line 50_000_000

  def start(server, settings, swaps) do
    # Far more than it takes; it ends when it is told to.
    seconds = min(7_200, 60 + swaps * 30)
    host = System.get_env("BENCH_SERVER_HOST", "127.0.0.1")
    rate = "rate=#{settings.rate}"

    arguments =
      String.split(System.get_env("BENCH_CLIENT_PREFIX", "")) ++
        [
          System.fetch_env!("BENCH_LOAD"),
          "--url",
          "http://#{host}:#{server.port}/version",
          "--seconds",
          "#{seconds}",
          "--mode",
          "connect,#{rate},concurrency=128",
          "--mode",
          "keepalive,#{rate},concurrency=50"
        ]

    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        {:line, @longest_line},
        args: ["-c", ~s(exec "$@" 2>"$0"), Path.join(server.directory, "load.err") | arguments]
      ])

    "ready" = line(port, 30_000)
    port
  end

  def mark(port, mark), do: true = Port.command(port, mark <> "\n")

  def stop(port) do
    mark(port, "stop")
    line(port, 60_000)
  end

  defp line(port, timeout) do
    receive do
      {^port, {:data, {:eol, line}}} -> line
    after
      timeout -> raise "the load client does not answer"
    end
  end
end

defmodule Bench.Swap.Memory do
  def read(server) do
    parent = server |> Bench.Swap.Server.call(System, :pid, []) |> String.to_integer()
    [%{os_pid: peer}] = Bench.Swap.Server.call(server, BeamDeploy, :info, []).peers
    %{parent: pss(parent), peer: pss(peer)}
  end

  defp pss(pid) do
    [_, kib] = Regex.run(~r/^Pss:\s+(\d+) kB/m, File.read!("/proc/#{pid}/smaps_rollup"))
    String.to_integer(kib)
  end
end

defmodule Bench.Swap.Json do
  # What the load client writes, which is known to be well-formed.

  def decode(text) do
    {value, ""} = value(String.trim_leading(text))
    value
  end

  defp value("{" <> rest), do: object(trim(rest), %{})
  defp value("[" <> rest), do: array(trim(rest), [])
  defp value("\"" <> rest), do: string(rest, "")
  defp value("true" <> rest), do: {true, rest}
  defp value("false" <> rest), do: {false, rest}
  defp value("null" <> rest), do: {nil, rest}

  defp value(text) do
    {whole, rest} = Integer.parse(text)

    case rest do
      <<next, _::binary>> when next in [?., ?e, ?E] -> Float.parse(text)
      _integer -> {whole, rest}
    end
  end

  defp object("}" <> rest, map), do: {map, rest}
  defp object("," <> rest, map), do: object(trim(rest), map)

  defp object("\"" <> rest, map) do
    {key, rest} = string(rest, "")
    ":" <> rest = trim(rest)
    {value, rest} = value(trim(rest))
    object(trim(rest), Map.put(map, key, value))
  end

  defp array("]" <> rest, list), do: {Enum.reverse(list), rest}
  defp array("," <> rest, list), do: array(trim(rest), list)

  defp array(text, list) do
    {value, rest} = value(text)
    array(trim(rest), [value | list])
  end

  defp string("\"" <> rest, text), do: {text, rest}

  defp string("\\u" <> <<hex::binary-4, rest::binary>>, text),
    do: string(rest, text <> <<String.to_integer(hex, 16)::utf8>>)

  defp string(<<?\\, escaped, rest::binary>>, text), do: string(rest, text <> unescape(escaped))
  defp string(<<char::utf8, rest::binary>>, text), do: string(rest, text <> <<char::utf8>>)

  defp unescape(?n), do: "\n"
  defp unescape(?t), do: "\t"
  defp unescape(char), do: <<char>>

  defp trim(text), do: String.trim_leading(text)
end

Bench.Swap.main(System.argv())
