defmodule BeamDeploy.HotUpgrade.Processes do
  @moduledoc false
  # Responsible for: which processes run which callback module, as a release handler would find them and better.
  # Not for: talking to them about code (Migration).
  #
  # Three sources, since each alone misses some: what `proc_lib` noted when a process began (nothing else knows
  # processes outside of supervisors), the handlers of event managers, and the `modules` of child specs (for behaviours
  # that wrap another one, such as GenStage).

  alias BeamDeploy.HotUpgrade.Running

  @typedoc "What a process is decides how it takes over new code. Parents have none to take over."
  @type kind :: :server | :supervisor | :event_manager | :agent | :channel | :parent

  @type target :: %{pid: pid(), kind: kind(), modules: [module()]}

  # A supervisor or event manager that does not answer is taken for one without news.
  @ask_timeout 1_000

  # A process of these notes whom it works for a little after its beginning.
  @forerunners [
    {Agent.Server, :init, 1},
    {Phoenix.Channel.Server, :init, 1},
    {Phoenix.LiveView.Channel, :init, 1}
  ]

  @behaviour_loops [:gen_server, :gen_statem, :gen_event, :gen_fsm, :sys]

  @doc """
  The processes that run one of the modules, and all processes that were looked at and had begun.

  Only processes that understand system messages: tasks and spawned functions are left alone. With them come the
  supervisors that start such processes, so that none begins in old code while it is replaced.
  """
  @spec affected(MapSet.t(module())) :: {[target()], MapSet.t(pid())}
  def affected(changed) do
    {calls, known} = look_at(Process.list())
    direct = targets(calls, changed)
    found = MapSet.new(direct, & &1.pid)
    targets = direct ++ supervised(calls, changed, found)
    {targets ++ parents(targets, calls), MapSet.new(known)}
  end

  defp parents(targets, calls) do
    parents =
      for %{pid: pid} <- targets,
          {:parent, parent} <- [Process.info(pid, :parent)],
          match?({:supervisor, _, _}, calls[parent]),
          uniq: true,
          do: parent

    for pid <- parents -- for(%{kind: :supervisor, pid: pid} <- targets, do: pid),
        do: %{pid: pid, kind: :parent, modules: []}
  end

  @doc "The processes that began since and run one of the modules."
  @spec newcomers(MapSet.t(module()), MapSet.t(pid())) :: {[target()], MapSet.t(pid())}
  def newcomers(changed, known) do
    case Enum.reject(Process.list(), &MapSet.member?(known, &1)) do
      [] ->
        {[], known}

      pids ->
        {calls, looked_at} = look_at(pids)
        {targets(calls, changed), MapSet.union(known, MapSet.new(looked_at))}
    end
  end

  @doc "Processes whose first call, as `proc_lib` noted it, satisfies the function."
  @spec by_initial_call((mfa() -> boolean())) :: [{pid(), mfa()}]
  def by_initial_call(wanted?) do
    for pid <- Process.list(), call = initial_call(pid), wanted?.(call), do: {pid, call}
  end

  @doc "The children of a supervisor, or none if it does not answer."
  @spec children(pid()) :: [
          {term(), pid() | :undefined | :restarting, atom(), [module()] | :dynamic}
        ]
  def children(supervisor) do
    GenServer.call(supervisor, :which_children, @ask_timeout)
  catch
    :exit, _reason -> []
  end

  # --- by what proc_lib noted

  # The first calls, and the processes that need not be looked at again: not those that are about to note theirs.
  defp look_at(pids) do
    Enum.reduce(pids, {%{}, []}, fn pid, {calls, known} ->
      case initial_call(pid) do
        nil -> {calls, if(begins?(pid), do: known, else: [pid | known])}
        call when call in @forerunners -> {Map.put(calls, pid, call), known}
        call -> {Map.put(calls, pid, call), [pid | known]}
      end
    end)
  end

  defp begins?(pid),
    do: match?({:initial_call, {:proc_lib, :init_p, _}}, Process.info(pid, :initial_call))

  # Since OTP 26.2 one key can be read without copying the whole dictionary.
  if List.to_integer(:erlang.system_info(:otp_release)) >= 27 do
    defp initial_call(pid) do
      case Process.info(pid, {:dictionary, :"$initial_call"}) do
        {_key, {module, function, arity}} -> {module, function, arity}
        _none -> nil
      end
    end
  else
    defp initial_call(pid) do
      with {:dictionary, dictionary} <- Process.info(pid, :dictionary),
           {_key, {module, function, arity}} <- List.keyfind(dictionary, :"$initial_call", 0) do
        {module, function, arity}
      else
        _none -> nil
      end
    end
  end

  defp targets(calls, changed) do
    self = self()

    for {pid, call} <- calls, pid != self, target = target(pid, call, changed), do: target
  end

  defp target(pid, {:supervisor, module, 1}, changed), do: one(pid, :supervisor, module, changed)
  defp target(pid, {module, :init, 1}, changed), do: one(pid, :server, module, changed)

  defp target(pid, {:gen_event, :init_it, 6}, changed) do
    case Enum.filter(handlers(pid), &MapSet.member?(changed, &1)) do
      [] -> nil
      modules -> %{pid: pid, kind: :event_manager, modules: Enum.uniq(modules)}
    end
  end

  # Agents and channels (LiveViews among them) put the user's function there, and so do tasks.
  defp target(pid, {module, function, arity}, changed) do
    if MapSet.member?(changed, module) and system_process?(pid) do
      kind = if {function, arity} in [mount: 3, join: 3], do: :channel, else: :agent
      %{pid: pid, kind: kind, modules: [module]}
    end
  end

  defp one(pid, kind, module, changed) do
    if MapSet.member?(changed, module), do: %{pid: pid, kind: kind, modules: [module]}
  end

  defp handlers(pid) do
    case :gen.call(pid, self(), :which_handlers, @ask_timeout) do
      {:ok, handlers} when is_list(handlers) -> Enum.map(handlers, &handler_module/1)
      _other -> []
    end
  catch
    :exit, _reason -> []
  end

  defp handler_module({module, _id}), do: module
  defp handler_module(module), do: module

  # --- whether a process understands system messages

  defp system_process?(pid) do
    case Process.info(pid, [:current_function, :current_stacktrace]) do
      [current_function: {:erlang, :hibernate, 3}, current_stacktrace: _] ->
        true

      [current_function: {module, _, _}, current_stacktrace: stacktrace] ->
        module in @behaviour_loops or Enum.any?(stacktrace, &(elem(&1, 0) in @behaviour_loops)) or
          deep_in_callback?(pid)

      _gone ->
        false
    end
  end

  # The stacktrace ends after eight calls; the backtrace shows the whole stack, as text.
  defp deep_in_callback?(pid) do
    case Process.info(pid, :backtrace) do
      {:backtrace, text} -> text =~ ~r/\b(gen_server|gen_statem|gen_event):/
      nil -> false
    end
  end

  # --- by child specs

  defp supervised(calls, changed, found) do
    for app <- Application.started_applications() |> Enum.map(&elem(&1, 0)),
        top = top_supervisor(app),
        {pid, modules} <- descendants(top, calls, MapSet.new()),
        not MapSet.member?(found, pid),
        module <- Enum.filter(modules, &wrapped?(&1, calls[pid], changed)),
        system_process?(pid) do
      %{pid: pid, kind: :server, modules: [module]}
    end
    |> Enum.uniq_by(& &1.pid)
  end

  # The module of a child spec is often that of a start function only. Where another process than `module`'s own runs,
  # it counts when it could be that one's callback module.
  defp wrapped?(module, call, changed) do
    is_atom(module) and MapSet.member?(changed, module) and function_exported?(module, :init, 1) and
      not match?({^module, _, _}, call)
  end

  defp top_supervisor(app) do
    with master when is_pid(master) <- :application_controller.get_master(app),
         {top, _module} when is_pid(top) <- :application_master.get_child(master) do
      top
    else
      _none -> nil
    end
  end

  defp descendants(supervisor, calls, seen) do
    if MapSet.member?(seen, supervisor) do
      []
    else
      seen = MapSet.put(seen, supervisor)

      Enum.flat_map(children(supervisor), fn
        {_id, pid, type, modules} when is_pid(pid) ->
          # A spec that says worker where a supervisor runs hides a whole subtree from a release handler.
          below =
            if type == :supervisor or match?({:supervisor, _, _}, calls[pid]),
              do: descendants(pid, calls, seen),
              else: []

          [{pid, if(is_list(modules), do: modules, else: [])} | below]

        _not_running ->
          []
      end)
    end
  end

  @doc "The `vsn` of the loaded code, as `code_change` is told it."
  @spec vsn(module()) :: term()
  def vsn(module) do
    case module.module_info(:attributes)[:vsn] do
      [vsn] -> vsn
      other -> other
    end
  end

  @doc "Modules by name that are running some process now."
  @spec running(Enumerable.t(String.t())) :: [String.t()]
  def running(names) do
    modules =
      for name <- names,
          {:ok, module} <- [Running.existing_atom(name)],
          into: MapSet.new(),
          do: module

    {targets, _pids} = affected(modules)

    for(%{modules: modules} <- targets, module <- modules, do: Atom.to_string(module))
    |> Enum.uniq()
    |> Enum.sort()
  end
end
