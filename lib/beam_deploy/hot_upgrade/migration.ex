defmodule BeamDeploy.HotUpgrade.Migration do
  @moduledoc false
  # Responsible for: processes across a change of their code: suspended together, their states converted or put back,
  # and every one resumed.
  # Not for: which code that is (Loader).

  alias BeamDeploy.HotUpgrade.{Processes, Stash, SystemMessages}

  # A supervisor starts a child while we suspend the others; the next round finds it. Each round takes a fraction of a
  # millisecond, so a system that starts processes all the time still comes to an end.
  @rounds 20

  @typedoc """
  A target with what it is told: `migrations` are the `change_code` messages for its modules, none when the new code
  takes the state as it is.
  """
  @type migrant :: %{
          pid: pid(),
          kind: Processes.kind(),
          modules: [module()],
          migrations: [{:change_code, module(), vsn :: term(), extra :: term()}]
        }

  @type t :: %{
          group: SystemMessages.group(),
          migrating: SystemMessages.group(),
          known: MapSet.t(pid())
        }

  @type failure :: %{pid: pid(), module: module(), reason: term()}

  @doc "Adds what each target has to be told, by the facts of its new code."
  @spec migrant(Processes.target(), %{module() => map()}) :: migrant()
  def migrant(target, facts) do
    migrations =
      for module <- target.modules, converts?(target.kind, facts[module]) do
        {:change_code, module, Processes.vsn(module), extra(target.kind, module)}
      end

    Map.put(target, :migrations, migrations)
  end

  # A supervisor's own code_change reads the child specs again.
  defp converts?(:supervisor, _facts), do: true
  defp converts?(:server, facts), do: facts.code_change == :own or facts.state_change
  defp converts?(_kind, facts), do: facts.code_change == :own

  # What Agent applies to the state, as a named function.
  defp extra(:agent, module), do: {__MODULE__, :change_agent, [module, Processes.vsn(module)]}
  defp extra(_kind, _module), do: []

  @doc false
  @spec change_agent(term(), module(), term()) :: term()
  def change_agent(state, module, vsn) do
    {:ok, state} = module.code_change(vsn, state, [])
    state
  end

  @doc "Prepares what can be prepared while the processes still run."
  @spec prepare([migrant()], MapSet.t(pid())) :: t()
  def prepare(migrants, known) do
    group = SystemMessages.group(migrants)
    %{group: group, migrating: migrating(group), known: known}
  end

  @doc """
  Suspends all processes, and those that meanwhile began to run the same modules, which `newcomers` finds. On failure
  the ones that did not answer are named; all have to be resumed in any case.
  """
  @spec suspend(t(), (MapSet.t(pid()) -> {[migrant()], MapSet.t(pid())}), timeout()) ::
          {:ok, t()} | {:error, {:suspend_failed, [pid()]}, t()}
  def suspend(migration, newcomers, timeout) do
    deadline = deadline(timeout)

    supervisors =
      :maps.filter(
        fn _monitor, target -> target.kind in [:supervisor, :parent] end,
        migration.group
      )

    # Supervisors first: the child that one of them is just starting may need a server that still answers.
    with {:ok, migration} <- suspend_group(migration, supervisors, deadline),
         {_group, migration} = add(migration, newcomers),
         others = Map.drop(migration.group, Map.keys(supervisors)),
         {:ok, migration} <- suspend_group(migration, others, deadline),
         do: suspend_newcomers(migration, newcomers, deadline, @rounds)
  end

  defp suspend_newcomers(migration, _newcomers, _deadline, 0), do: {:ok, migration}

  defp suspend_newcomers(migration, newcomers, deadline, rounds) do
    case add(migration, newcomers) do
      {group, migration} when group == %{} ->
        {:ok, migration}

      {group, migration} ->
        with {:ok, migration} <- suspend_group(migration, group, deadline),
             do: suspend_newcomers(migration, newcomers, deadline, rounds - 1)
    end
  end

  defp add(migration, newcomers) do
    {migrants, known} = newcomers.(migration.known)
    group = SystemMessages.group(migrants)

    {group,
     %{
       group: Map.merge(migration.group, group),
       migrating: Map.merge(migration.migrating, migrating(group)),
       known: known
     }}
  end

  defp suspend_group(migration, group, deadline) do
    :ok =
      SystemMessages.ask(group, :suspended, fn
        %{migrations: []} -> [:suspend]
        %{kind: :event_manager} -> [:suspend, {:replace_state, &Stash.keep_handler/1}]
        _migrant -> [:suspend, {:replace_state, &Stash.keep/1}]
      end)

    answers = SystemMessages.await(group, :suspended, deadline)
    migration = without(migration, answers.dead)

    if answers.silent == %{},
      do: {:ok, migration},
      else: {:error, {:suspend_failed, pids(answers.silent)}, migration}
  end

  @doc "Converts the states, with the new code loaded. A process that dies meanwhile has none to convert."
  @spec change(t(), timeout()) :: {:ok, t()} | {:error, [failure()], t()}
  def change(migration, timeout) do
    deadline = deadline(timeout)
    group = migration.migrating
    :ok = SystemMessages.ask(group, :changed, & &1.migrations)
    answers = SystemMessages.await(group, :changed, deadline)

    refused =
      for {monitor, answer} <- answers.answered, answer != :ok, target = group[monitor] do
        failure(target, reason(answer))
      end

    hung = for {_monitor, target} <- answers.silent, do: failure(target, :timeout)
    migration = without(migration, answers.dead)

    if refused ++ hung == [], do: {:ok, migration}, else: {:error, refused ++ hung, migration}
  end

  defp reason({:error, {:EXIT, reason}}), do: reason
  defp reason({:error, reason}), do: reason
  defp reason(other), do: other

  defp failure(target, reason),
    do: %{pid: target.pid, module: List.last(target.modules), reason: reason}

  @doc "Puts the states back as they were when the processes were suspended."
  @spec restore(t()) :: :ok
  def restore(migration) do
    SystemMessages.ask(migration.migrating, :restored, fn
      %{kind: :event_manager} -> [{:replace_state, &Stash.restore_handler/1}]
      _migrant -> [{:replace_state, &Stash.restore/1}]
    end)
  end

  @doc """
  After `restore/1`: processes that are still busy converting get another `timeout`. Only one that does not come back
  even then is stopped, for its supervisor to start it again: nothing else frees it from its own code.
  """
  @spec await_restored(t(), timeout()) :: [pid()]
  def await_restored(migration, timeout) do
    answers = SystemMessages.await(migration.migrating, :restored, deadline(timeout))
    pids = pids(answers.silent)
    Enum.each(pids, &Process.exit(&1, :kill))
    pids
  end

  @doc "Resumes every process, those that never answered included: their queue holds the message to suspend."
  @spec resume(t()) :: :ok
  def resume(migration), do: SystemMessages.tell(migration.group, fn _migrant -> [:resume] end)

  @doc "Gives back what the processes kept for `restore/1`, and the monitors."
  @spec finish(t()) :: :ok
  def finish(migration) do
    :ok =
      SystemMessages.tell(migration.migrating, fn
        %{kind: :event_manager} -> [{:replace_state, &Stash.drop_handler/1}]
        _migrant -> [{:replace_state, &Stash.drop/1}]
      end)

    SystemMessages.release(migration.group)
  end

  @spec pids(SystemMessages.group()) :: [pid()]
  def pids(group), do: for({_monitor, target} <- group, do: target.pid)

  defp without(migration, []), do: migration

  defp without(migration, monitors) do
    %{
      migration
      | group: Map.drop(migration.group, monitors),
        migrating: Map.drop(migration.migrating, monitors)
    }
  end

  defp migrating(group),
    do: :maps.filter(fn _monitor, target -> target.migrations != [] end, group)

  defp deadline(timeout), do: System.monotonic_time(:millisecond) + timeout
end
