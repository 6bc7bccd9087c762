defmodule BeamDeploy.HotUpgrade.Guard do
  @moduledoc false
  # Responsible for: all or nothing, also when the upgrade's own process is killed: then what it did is undone from here,
  # or all is resumed if that process had come to the end.
  # Not for: any other ending, which the upgrade sees to itself.
  #
  # Between the last rename and the note that it was made nobody must be killed, so that is done here too.

  alias BeamDeploy.HotUpgrade.{Installation, Migration, Undo}

  @typedoc "What `BeamDeploy.HotUpgrade.Pause` was given."
  @type prepared :: map()

  @doc "Watches over the calling process."
  @spec start(prepared()) :: pid()
  def start(prepared) do
    upgrade = self()
    known = Map.take(prepared, [:loader, :path, :installation, :code_change_timeout])
    pid = spawn(fn -> watch(Process.monitor(upgrade), Map.put(known, :migrants, []), false) end)
    true = Process.register(pid, __MODULE__)
    pid
  end

  @doc "Whether one is still at its work."
  @spec busy?() :: boolean()
  def busy?, do: Process.whereis(__MODULE__) != nil

  @doc "To be told before the processes are suspended."
  @spec add(pid(), [Migration.migrant()]) :: :ok
  def add(guard, migrants) do
    send(guard, {:add, migrants})
    :ok
  end

  @doc "`BeamDeploy.HotUpgrade.Installation.commit/1`, with which the upgrade is done."
  @spec commit(pid()) :: :ok | {:error, term()}
  def commit(guard) do
    monitor = Process.monitor(guard)
    send(guard, {:commit, self(), monitor})

    receive do
      {^monitor, result} ->
        Process.demonitor(monitor, [:flush])
        result

      {:DOWN, ^monitor, :process, ^guard, reason} ->
        {:error, {:crashed, reason}}
    end
  end

  @doc "All are resumed."
  @spec stop(pid()) :: :ok
  def stop(guard) do
    send(guard, :stop)
    await(guard)
  end

  @doc "Returns when the one that is at work has done it."
  @spec await() :: :ok
  def await do
    case Process.whereis(__MODULE__) do
      nil -> :ok
      guard -> await(guard)
    end
  end

  defp await(guard) do
    monitor = Process.monitor(guard)

    receive do
      {:DOWN, ^monitor, :process, ^guard, _reason} -> :ok
    end
  end

  defp watch(monitor, known, committed?) do
    receive do
      {:add, migrants} ->
        watch(monitor, %{known | migrants: migrants ++ known.migrants}, committed?)

      {:commit, from, reference} ->
        result = Installation.commit(known.installation)
        send(from, {reference, result})
        watch(monitor, known, result == :ok)

      :stop ->
        :ok

      {:DOWN, ^monitor, :process, _upgrade, _reason} ->
        known.migrants |> Migration.prepare(MapSet.new()) |> take_over(known, committed?)
    end
  end

  defp take_over(migration, _known, true) do
    :ok = Migration.resume(migration)
    Migration.finish(migration)
  end

  defp take_over(migration, known, false) do
    undo = Undo.run(migration, known.loader, known.path.now)
    :ok = Migration.resume(migration)
    _ended = Undo.settle(undo, migration, known.code_change_timeout)
    Installation.discard(known.installation)
  end
end
