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
          nobody: SystemMessages.nobody(),
          known: MapSet.t(pid())
        }

  @typedoc "How the `gen_statem`s among the modules are called."
  @type modes :: %{module() => [atom()]}

  @type failure :: %{pid: pid(), module: module(), reason: term()}

  @typedoc "Finds the processes that began since and run the same modules, and adds all that began to those that are known."
  @type newcomers :: (MapSet.t(pid()) -> {[migrant()], MapSet.t(pid())})

  @doc "Adds what each target has to be told, by the facts of its new code."
  @spec migrant(Processes.target(), %{module() => map()}) :: migrant()
  def migrant(target, facts) do
    migrations =
      for module <- target.modules, converts?(target.kind, module, facts[module]) do
        {:change_code, module, Processes.vsn(module), extra(target.kind, module)}
      end

    Map.put(target, :migrations, migrations)
  end

  # A supervisor's own code_change reads the child specs again.
  defp converts?(:supervisor, _module, _facts), do: true
  defp converts?(:server, _module, facts), do: facts.code_change == :own or facts.state_change

  # A callback module converts the state of its own process, not that of an agent which it has started.
  defp converts?(:agent, module, facts),
    do: facts.code_change == :own and not function_exported?(module, :init, 1)

  defp converts?(_kind, _module, facts), do: facts.code_change == :own

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

    %{
      group: group,
      migrating: migrating(group),
      nobody: SystemMessages.nobody(),
      known: known
    }
  end

  @doc """
  Suspends all processes, and those that meanwhile began to run the same modules, which `newcomers` finds. On failure
  the ones that did not answer are named; all have to be resumed in any case.
  """
  @spec suspend(t(), newcomers(), timeout()) ::
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
       migration
       | group: Map.merge(migration.group, group),
         migrating: Map.merge(migration.migrating, migrating(group)),
         known: known
     }}
  end

  defp suspend_group(migration, group, deadline) do
    # What a state was is kept as soon as it can change no more.
    asked =
      SystemMessages.ask(group, :suspended, fn _migrant -> [:suspend] end, migration.nobody, fn
        %{migrations: []} -> []
        %{kind: :event_manager} -> [{:replace_state, &Stash.keep_handler/1}]
        _migrant -> [{:replace_state, &Stash.keep/1}]
      end)

    answers = SystemMessages.await(asked, deadline)
    migration = without(migration, answers.dead)

    if answers.silent == %{},
      do: {:ok, migration},
      else: {:error, {:suspend_failed, pids(answers.silent)}, migration}
  end

  @doc """
  The processes that began since all others were suspended, and have a state that code has to be converted for. Which code
  their state is of cannot be told.
  """
  @spec begun(t(), newcomers()) :: [pid()]
  def begun(migration, newcomers) do
    {migrants, _known} = newcomers.(migration.known)
    for %{kind: kind, migrations: [_ | _], pid: pid} <- migrants, kind != :supervisor, do: pid
  end

  @doc "To be asked while the old code is loaded; see `check_modes/1`."
  @spec modes([migrant()]) :: modes()
  def modes(migrants) do
    modules =
      for %{kind: :server, modules: modules} <- migrants,
          module <- modules,
          uniq: true,
          do: module

    for module <- modules,
        function_exported?(module, :callback_mode, 0),
        into: %{},
        do: {module, mode(module)}
  end

  defp mode(module), do: module.callback_mode() |> List.wrap() |> Enum.sort()

  @doc """
  With the new code loaded: whether each `gen_statem` is called as before. It takes a new way to be called from the new
  module and cannot be given back the old one, so this is refused while all can be undone.
  """
  @spec check_modes(modes()) ::
          :ok | {:error, {:load_failed, [{module(), :callback_mode_changed}]}}
  def check_modes(modes) do
    case for {module, mode} <- modes, mode(module) != mode, do: module do
      [] -> :ok
      changed -> {:error, {:load_failed, Enum.map(changed, &{&1, :callback_mode_changed})}}
    end
  end

  @doc "Converts the states, with the new code loaded. A process that dies meanwhile has none to convert."
  @spec change(t(), timeout()) :: {:ok, t()} | {:error, [failure()], t()}
  def change(migration, timeout) do
    group = migration.migrating
    asked = SystemMessages.ask(group, :changed, & &1.migrations)
    answers = SystemMessages.await(asked, deadline(timeout))
    refused = refused(answers.answered, group)

    hung =
      for {_monitor, target} <- answers.silent,
          do: failure(target, hd(target.migrations), :timeout)

    migration = without(migration, answers.dead)

    if refused ++ hung == [], do: {:ok, migration}, else: {:error, refused ++ hung, migration}
  end

  # Nothing else is looked at where all is well.
  defp refused(answered, group) do
    if Enum.all?(answered, &match?({_monitor, :ok}, &1)) do
      []
    else
      # A process answers in the order in which it was asked.
      by_monitor = answered |> Enum.reverse() |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))

      for {monitor, answers} <- by_monitor,
          target = group[monitor],
          {migration, answer} <- Enum.zip(target.migrations, answers),
          answer != :ok,
          do: failure(target, migration, reason(answer))
    end
  end

  defp reason({:error, {:EXIT, reason}}), do: reason
  defp reason({:error, reason}), do: reason
  defp reason(other), do: other

  defp failure(target, {:change_code, module, _vsn, _extra}, reason),
    do: %{pid: target.pid, module: module, reason: reason}

  @doc """
  Puts the states back as they were when the processes were suspended. They stay suspended; that is asked of them again
  because its answer says that they have got there.
  """
  @spec restore(t()) :: SystemMessages.question()
  def restore(migration) do
    restored = fn
      %{kind: :event_manager} -> [{:replace_state, &Stash.restore_handler/1}]
      _migrant -> [{:replace_state, &Stash.restore/1}]
    end

    :ok = SystemMessages.tell(migration.migrating, migration.nobody, restored)

    SystemMessages.ask(migration.migrating, :restored, fn _migrant -> [:suspend] end)
  end

  @doc """
  After `restore/1`: processes that are still busy converting get another `timeout`. Only one that does not come back
  even then is stopped, for its supervisor to start it again: nothing else frees it from its own code.
  """
  @spec await_restored(SystemMessages.question(), timeout()) :: [pid()]
  def await_restored(asked, timeout) do
    answers = SystemMessages.await(asked, deadline(timeout))
    pids = pids(answers.silent)
    Enum.each(pids, &Process.exit(&1, :kill))
    pids
  end

  @doc "Resumes every process, those that never answered included: their queue holds the message to suspend."
  @spec resume(t()) :: :ok
  def resume(migration),
    do: SystemMessages.tell(migration.group, migration.nobody, fn _migrant -> [:resume] end)

  @doc "Gives back what the processes kept for `restore/1`, and the monitors."
  @spec finish(t()) :: :ok
  def finish(migration) do
    :ok =
      SystemMessages.tell_in_portions(migration.migrating, migration.nobody, fn
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
