defmodule BeamDeploy.HotUpgrade.Pause do
  @moduledoc false
  # Responsible for: the time in which processes are suspended, from the first to the last of them, and going back.
  # Not for: anything that can be done before or after it.
  #
  # Nothing is logged here: the logger may be among the suspended.

  alias BeamDeploy.HotUpgrade.{CodePath, Guard, Installation, Loader, Migration}

  @typedoc "What has been prepared while everything ran."
  @type prepared :: %{
          migration: Migration.t(),
          modes: Migration.modes(),
          newcomers: Migration.newcomers(),
          loader: Loader.t(),
          installation: Installation.t(),
          path: %{now: CodePath.t(), next: CodePath.t()},
          suspend_timeout: timeout(),
          code_change_timeout: timeout(),
          caller: {pid(), reference()}
        }

  @typedoc "Each phase with its duration in native time units and what came of it."
  @type timings :: [{atom(), integer(), :ok | {:error, term()}}]

  @type outcome :: %{
          result: :ok | {:error, term()},
          timings: timings(),
          pause: integer(),
          processes: non_neg_integer()
        }

  @spec run(prepared()) :: outcome()
  def run(prepared) do
    guard = Guard.start(prepared)
    :ok = Guard.add(guard, Map.values(prepared.migration.group))

    prepared = Map.put(prepared, :guard, guard)

    # Ahead of the processes it wakes: each of them waits for all that is sent before its own turn.
    priority = Process.flag(:priority, :high)
    started = System.monotonic_time()

    {result, migration, timings} = suspend(prepared)

    # To those that an undo has resumed already it is nothing new.
    {resumed, timings} = timed(timings, :resume, fn -> Migration.resume(migration) end)
    pause = System.monotonic_time() - started
    :ok = resumed
    Process.flag(:priority, priority)
    :ok = Migration.finish(migration)
    :ok = Guard.stop(guard)

    %{
      result: result,
      timings: Enum.reverse(timings),
      pause: pause,
      processes: map_size(migration.group)
    }
  end

  defp guarded(newcomers, guard) do
    fn known ->
      {migrants, known} = newcomers.(known)
      :ok = Guard.add(guard, migrants)
      {migrants, known}
    end
  end

  defp suspend(prepared) do
    {suspended, timings} =
      timed([], :suspend, fn ->
        newcomers = guarded(prepared.newcomers, prepared.guard)
        Migration.suspend(prepared.migration, newcomers, prepared.suspend_timeout)
      end)

    case suspended do
      {:ok, migration} -> load(prepared, migration, timings)
      {:error, reason, migration} -> {{:error, reason}, migration, timings}
    end
  end

  defp load(prepared, migration, timings) do
    :ok = Guard.loading(prepared.guard)
    {loaded, timings} = timed(timings, :load, fn -> Loader.load(prepared.loader) end)

    case loaded do
      :ok -> migrate(prepared, migration, timings)
      {:error, reason} -> {{:error, reason}, migration, timings}
    end
  end

  # The point of no return is the end of this phase: until then everything is put back.
  defp migrate(prepared, migration, timings) do
    {changed, timings} =
      timed(timings, :migrate, fn ->
        with :ok <- nobody_began(prepared, migration),
             :ok <- CodePath.set(prepared.path.next),
             :ok <- Loader.load_native(prepared.loader),
             :ok <- Migration.check_modes(prepared.modes),
             {:ok, migration} <- Migration.change(migration, prepared.code_change_timeout) do
          commit(prepared, migration)
        end
      end)

    case changed do
      {:ok, migration} ->
        {:ok, migration, timings}

      {:error, failures, migration} when is_list(failures) ->
        undo(prepared, migration, {:code_change_failed, failures}, timings)

      {:error, reason, migration} ->
        undo(prepared, migration, reason, timings)

      {:error, reason} ->
        undo(prepared, migration, reason, timings)
    end
  end

  # Who did so after the last look, and before the new code was there, has an old state that nobody would convert.
  defp nobody_began(prepared, migration) do
    case Migration.begun(migration, prepared.newcomers) do
      [] -> :ok
      pids -> {:error, {:suspend_failed, pids}}
    end
  end

  defp commit(prepared, migration) do
    with :ok <- Guard.commit(prepared.guard), do: {:ok, migration}
  end

  defp undo(prepared, migration, reason, timings) do
    {undone, timings} =
      timed(timings, :undo, fn -> Guard.undo(prepared.guard, migration.known) end)

    {{:error, describe(reason, undone)}, migration, timings}
  end

  defp describe({:code_change_failed, failures}, {:ok, ended}),
    do: {:code_change_failed, %{processes: failures, killed: ended}}

  defp describe(reason, {:ok, _ended}), do: reason
  defp describe(_reason, {:error, reason}), do: reason

  defp timed(timings, phase, function) do
    started = System.monotonic_time()
    result = function.()
    duration = System.monotonic_time() - started
    {result, [{phase, duration, outcome(result)} | timings]}
  end

  defp outcome({:error, reason}), do: {:error, reason}
  defp outcome({:error, reason, _migration}), do: {:error, reason}
  defp outcome(_done), do: :ok
end
