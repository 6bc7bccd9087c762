# One upgrade in a fresh VM: `elixir bench/hot_once.exs ours|baseline DIRECTORY PROCESSES`.
# Prints what it took as a term, and what callers had to wait.
Code.require_file("hot_baseline.exs", __DIR__)

defmodule :telemetry do
  # Where the phases are told to.
  def execute([:beam_deploy, :hot_upgrade, :phase, :stop], %{duration: duration}, %{phase: phase}) do
    :persistent_term.put(
      {:bench, phase},
      System.convert_time_unit(duration, :native, :microsecond) / 1000
    )
  end

  def execute([:beam_deploy, :hot_upgrade, :stop], _measurements, %{pause: pause}) do
    :persistent_term.put(
      {:bench, :pause},
      System.convert_time_unit(pause, :native, :microsecond) / 1000
    )
  end

  def execute(_event, _measurements, _metadata), do: :ok
end

defmodule Bench.HotOnce do
  @callers 16

  def run([way, dir, processes]) do
    # What any release has loaded; the logger would measure the terminal.
    Logger.configure(level: :error)
    load_first(dir)

    pids =
      for id <- 1..String.to_integer(processes), do: elem(GenServer.start(:bench_server, id), 1)

    callers = start_callers(pids)
    tarball = Path.join(dir, "second.tar.gz")
    {total, figures} = Bench.HotBaseline.timed(fn -> upgrade(way, tarball, dir) end)
    waits = Enum.map(callers, &longest/1)
    :ok = check(pids, dir)

    IO.puts(
      "FIGURES " <>
        inspect(Map.merge(figures, %{total: total, wait: Enum.max(waits)}), limit: :infinity)
    )
  end

  defp upgrade("baseline", tarball, dir),
    do: Bench.HotBaseline.run(tarball, Path.join(dir, "extracted#{System.pid()}"))

  defp upgrade("ours", tarball, _dir) do
    case BeamDeploy.HotUpgrade.run(tarball, otp_app: :bench_app, force: true) do
      :ok ->
        for phase <- [:plan, :stage, :suspend, :load, :migrate, :resume, :refresh, :pause],
            into: %{},
            do: {phase, :persistent_term.get({:bench, phase})}

      {:error, reason} ->
        raise inspect(reason)
    end
  end

  # From files, as a release has its code.
  defp load_first(dir) do
    files =
      for path <- Path.wildcard(Path.join(dir, "first/lib/bench_app-1.0.0/ebin/*.beam")) do
        {path |> Path.basename(".beam") |> String.to_atom(), String.to_charlist(path),
         File.read!(path)}
      end

    {:ok, prepared} = :code.prepare_loading(files)
    :ok = :code.finish_loading(prepared)
    :code.add_pathz(String.to_charlist(Path.join(dir, "first/lib/bench_app-1.0.0/ebin")))
    :ok = :application.load(:bench_app)
    {:ok, _started} = Application.ensure_all_started(:crypto)
  end

  # Each calls a server of its own every millisecond and keeps the longest time it had to wait.
  defp start_callers(pids) do
    for pid <- Enum.take_random(pids, @callers) do
      spawn_link(fn -> call(pid, 0) end)
    end
  end

  defp call(pid, longest) do
    started = System.monotonic_time(:microsecond)
    _state = GenServer.call(pid, :get, :infinity)
    longest = max(longest, System.monotonic_time(:microsecond) - started)

    receive do
      {:longest, from} -> send(from, {:longest, self(), longest / 1000})
    after
      1 -> call(pid, longest)
    end
  end

  defp longest(caller) do
    send(caller, {:longest, self()})

    receive do
      {:longest, ^caller, longest} -> longest
    end
  end

  # It was done, and wholly.
  defp check(pids, dir) do
    true = Enum.all?(pids, &match?({:converted, _}, GenServer.call(&1, :get, :infinity)))
    md5s = dir |> Path.join("second.md5s") |> File.read!() |> :erlang.binary_to_term()
    true = Enum.all?(md5s, fn {module, md5} -> module.module_info(:md5) == md5 end)
    :ok
  end
end

Bench.HotOnce.run(System.argv())
