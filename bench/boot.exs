defmodule Bench.Boot do
  alias BeamDeploy.BlueGreen.{DescriptorServer, Handoff, Listener, Peer}
  alias BeamDeploy.Release
  alias BeamDeploy.Test.{Http, SampleRelease}

  # What a release of a Phoenix application with its libraries would hold is not to be had everywhere; OTP's own
  # applications are about as large and are started as well.
  @applications "ssl inets ssh mnesia xmerl os_mon runtime_tools tools syntax_tools parsetools eunit ftp tftp eldap " <>
                  "diameter snmp megaco common_test edoc reltool et observer wx debugger dialyzer"

  def main(arguments) do
    {options, [], []} = OptionParser.parse(arguments, strict: [rounds: :integer])
    rounds = Keyword.get(options, :rounds, 7)
    Logger.configure(level: :warning)
    System.put_env("SAMPLE_APPLICATIONS", available(@applications))
    System.put_env("SAMPLE_PORT", "#{Http.free_port()}")
    root = SampleRelease.unpacked("0.1.0", :large)
    {:ok, release} = Release.read(root)

    run_dir = Path.join(System.tmp_dir!(), "bench_boot_#{System.pid()}")
    File.mkdir_p!(run_dir)

    try do
      {:ok, _} = start_parent(Path.join(run_dir, "sock"))

      context = %{
        side: :blue,
        outgoing: nil,
        base: release,
        run_dir: run_dir,
        socket: Path.join(run_dir, "sock")
      }

      # What the peer that runs would tell of itself.
      {_ms, _ms_all, startup} = ours(release, Map.put(context, :preload, ""))
      context = Map.put(context, :preload, startup)
      beams = length(Path.wildcard(Path.join(root, "lib/*/ebin/*.beam")))

      IO.puts(
        "#{beams} modules, #{length(String.split(startup))} of them loaded when the application is started\n"
      )

      results =
        for round <- 1..rounds do
          {ours, complete, _startup} = ours(release, context)
          straight = straightforward(root)
          bare = bare()

          IO.puts(
            "round #{round}: ours #{ms(ours)} (#{ms(complete)} with all modules loaded), straightforward #{ms(straight)}, bare peer #{ms(bare)}"
          )

          {ours, complete, straight, bare}
        end

      [ours, complete, straight, bare] =
        for place <- 0..3, do: results |> Enum.map(&elem(&1, place)) |> median()

      IO.puts("\nmedian   ours  with all modules  straightforward  bare peer")
      IO.puts("         #{ms(ours)}  #{ms(complete)}  #{ms(straight)}  #{ms(bare)}")

      IO.puts(
        "RESULT boot_ratio=#{ratio(ours, straight)} complete_ratio=#{ratio(complete, straight)} floor_ratio=#{ratio(bare, straight)}"
      )
    after
      File.rm_rf!(run_dir)
    end
  end

  defp available(applications) do
    applications
    |> String.split()
    |> Enum.filter(&(:code.where_is_file(~c"#{&1}.app") != :non_existing))
    |> Enum.join(" ")
  end

  # The parts of a parent that a peer needs to come up.
  defp start_parent(socket) do
    Supervisor.start_link(
      [
        Handoff,
        {Task.Supervisor, name: BeamDeploy.TaskSupervisor},
        {Listener, mode: :steered},
        {DescriptorServer, socket},
        {DynamicSupervisor, name: BeamDeploy.PeerSupervisor}
      ],
      strategy: :one_for_one
    )
  end

  defp ours(release, context) do
    started = now()
    {:ok, peer} = Peer.start(release, context)
    with {:error, reason} <- Peer.await_started(peer, 60_000), do: raise(inspect(reason))
    booted = now() - started
    {:ok, :ok} = Peer.call(peer, :load_modules, [], 60_000)
    complete = now() - started
    {:ok, startup} = Peer.call(peer, :startup_modules, [], 5_000)
    :killed = Peer.kill(peer)
    {:ok, _discarded} = Listener.release(:blue)
    {booted, complete, startup}
  end

  defp straightforward(root) do
    paths =
      Enum.flat_map(Path.wildcard(Path.join(root, "lib/*/ebin")), &[~c"-pa", to_charlist(&1)])

    environment = [{~c"BEAM_DEPLOY", ~c"0"}]
    started = now()
    {:ok, control, node} = start_plain(paths, environment)
    {:ok, _applications} = :erpc.call(node, :application, :ensure_all_started, [:elixir])

    :ok =
      :erpc.call(node, :application, :set_env, [
        :sample,
        :port,
        String.to_integer(System.get_env("SAMPLE_PORT"))
      ])

    :ok = :erpc.call(node, :application, :set_env, [:sample, :variant, :large])
    {:ok, _applications} = :erpc.call(node, :application, :ensure_all_started, [:sample])
    elapsed = now() - started
    :peer.stop(control)
    elapsed
  end

  defp bare do
    started = now()
    {:ok, control, _node} = start_plain([], [])
    elapsed = now() - started
    :peer.stop(control)
    elapsed
  end

  defp start_plain(arguments, environment) do
    :peer.start(%{
      name: :"plain_#{System.pid()}",
      host: ~c"127.0.0.1",
      longnames: true,
      args: [
        ~c"-boot",
        ~c"start_clean",
        ~c"-setcookie",
        Atom.to_charlist(Node.get_cookie()) | arguments
      ],
      env: environment
    })
  end

  defp now, do: System.monotonic_time(:microsecond)
  defp median(values), do: values |> Enum.sort() |> Enum.at(div(length(values), 2))
  defp ms(microseconds), do: "#{div(microseconds, 1000)} ms"
  defp ratio(ours, other), do: Float.round(ours / other, 2)
end

Bench.Boot.main(System.argv())
