defmodule BeamDeploy.HotUpgrade.Guard do
  @moduledoc false
  # Responsible for: all or nothing, also when the upgrade's own process is killed. What has to be done once and to its end
  # is done here, the commit and the undo; and whatever that process leaves undone.
  # Not for: anything else of an upgrade that goes its way.

  alias BeamDeploy.HotUpgrade.{Installation, Migration, Undo}

  require Logger

  @typedoc """
  What `BeamDeploy.HotUpgrade.Pause` was given. Among it is who has to hear of the commit from here, since the upgrade may
  not live to tell: he gets `{reference, :committed, installation}`.
  """
  @type prepared :: map()

  # How far the upgrade has come: `:suspending`, `:loading`, and then `:committed` or `:undone`.

  @doc "Watches over the calling process."
  @spec start(prepared()) :: pid()
  def start(prepared) do
    upgrade = self()
    taken = [:loader, :path, :installation, :code_change_timeout, :newcomers, :caller]
    state = prepared |> Map.take(taken) |> Map.merge(%{migrants: [], phase: :suspending})
    pid = spawn(fn -> watch(Process.monitor(upgrade), state) end)
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

  @doc "To be told before the first thing is done that an undo would have to put back."
  @spec loading(pid()) :: :ok
  def loading(guard) do
    send(guard, :loading)
    :ok
  end

  @doc "`BeamDeploy.HotUpgrade.Installation.commit/1`, with which the upgrade is done."
  @spec commit(pid()) :: :ok | {:error, term()}
  def commit(guard), do: call(guard, :commit)

  @doc """
  Puts everything back, and resumes the processes. `known` are those that were there before the new code was. Answers
  the ones that had to be ended for it.
  """
  @spec undo(pid(), MapSet.t(pid())) :: {:ok, [pid()]} | {:error, term()}
  def undo(guard, known), do: call(guard, {:undo, known})

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

  defp call(guard, request) do
    monitor = Process.monitor(guard)
    send(guard, {request, self(), monitor})

    receive do
      {^monitor, result} ->
        Process.demonitor(monitor, [:flush])
        result

      {:DOWN, ^monitor, :process, ^guard, reason} ->
        {:error, {:crashed, reason}}
    end
  end

  defp watch(monitor, state) do
    receive do
      {:add, migrants} ->
        watch(monitor, %{state | migrants: migrants ++ state.migrants})

      :loading ->
        watch(monitor, %{state | phase: :loading})

      {:commit, from, reference} ->
        result = Installation.commit(state.installation)
        send(from, {reference, result})
        watch(monitor, if(result == :ok, do: committed(state), else: state))

      {{:undo, known}, from, reference} ->
        # Meanwhile it receives nothing but answers of processes, and their ends.
        Process.demonitor(monitor, [:flush])
        send(from, {reference, {:ok, put_back(state, known)}})
        watch(Process.monitor(from), %{state | phase: :undone})

      :stop ->
        :ok

      {:DOWN, ^monitor, :process, _upgrade, _reason} ->
        take_over(state)
    end
  end

  defp committed(%{caller: {pid, reference}} = state) do
    send(pid, {reference, :committed, state.installation})
    %{state | phase: :committed}
  end

  # The upgrade is gone.

  defp take_over(%{phase: :suspending} = state) do
    resume(state)
    Installation.discard(state.installation)
  end

  defp take_over(%{phase: :loading} = state) do
    put_back(state, MapSet.new(state.migrants, & &1.pid))
    Installation.discard(state.installation)
  end

  defp take_over(%{phase: :committed} = state), do: resume(state)
  defp take_over(%{phase: :undone} = state), do: Installation.discard(state.installation)

  defp resume(state) do
    migration = Migration.prepare(state.migrants, MapSet.new())
    :ok = Migration.resume(migration)
    :ok = Migration.finish(migration)
  end

  defp put_back(state, known) do
    priority = Process.flag(:priority, :high)
    migration = Migration.prepare(state.migrants, known)

    undone =
      try do
        Undo.run(migration, state.loader, state.path.now, state.newcomers)
      after
        # Whatever happens.
        :ok = Migration.resume(migration)
        Process.flag(:priority, priority)
      end

    ended = Undo.settle(undone, migration, state.code_change_timeout)

    # Not before: the logger may have been among the suspended.
    if ended != [] do
      Logger.warning(
        "beam_deploy: a hot upgrade was undone, and processes that could not go back with it were ended: #{inspect(ended)}"
      )
    end

    with {:error, reason} <- undone.path do
      Logger.error("beam_deploy: the code path could not be put back: #{inspect(reason)}")
    end

    ended
  end
end
