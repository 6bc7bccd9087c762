defmodule BeamDeploy.HotUpgrade.Supervision do
  @moduledoc false
  # Responsible for: the children of supervisors whose specs changed: added ones started, removed ones stopped.
  # Not for: reading the specs again, which a supervisor does itself when its code changes.
  #
  # A supervisor's own code_change keeps the children that are in its new specs no more, and starts none of the new.

  alias BeamDeploy.HotUpgrade.Processes

  @type failure :: {supervisor :: module(), child :: term(), reason :: term()}

  @doc "The children that somebody stopped on purpose, before an upgrade: they stay so."
  @spec stopped(pid()) :: [term()]
  def stopped(supervisor),
    do: for({id, :undefined, _type, _modules} <- Processes.children(supervisor), do: id)

  @doc """
  Takes over the children of one supervisor, whose callback module is loaded in its new version. `before` are the
  children that were stopped before.
  """
  @spec follow(pid(), module(), [term()]) :: [failure()]
  def follow(supervisor, module, before) do
    with {:ok, argument} <- argument(supervisor),
         {:ok, {_flags, specs}} <- module.init(argument) do
      wanted = Enum.map(specs, &Supervisor.child_spec(&1, []).id)
      children = Processes.children(supervisor)

      failures(
        stop_removed(supervisor, children, wanted) ++
          start_added(supervisor, children, wanted -- before),
        module
      )
    else
      _dynamic_or_ignored -> []
    end
  end

  # Supervisors whose children are started on demand have no list of them. The argument is the last field of the state
  # of a `supervisor` in every OTP release.
  defp argument(supervisor) do
    case :sys.get_state(supervisor) do
      state when is_tuple(state) and elem(state, 0) == :state ->
        if elem(state, 2) == :simple_one_for_one,
          do: :error,
          else: {:ok, elem(state, tuple_size(state) - 1)}

      _other ->
        :error
    end
  end

  defp stop_removed(supervisor, children, wanted) do
    for {id, _pid, _type, _modules} <- children, id not in wanted do
      with :ok <- Supervisor.terminate_child(supervisor, id),
           :ok <- Supervisor.delete_child(supervisor, id) do
        :ok
      else
        {:error, reason} -> {id, reason}
      end
    end
  end

  # In the order of the specs, as at a start.
  defp start_added(supervisor, children, wanted) do
    stopped = for {id, :undefined, _type, _modules} <- children, do: id

    for id <- wanted, id in stopped do
      case Supervisor.restart_child(supervisor, id) do
        {:error, reason} -> {id, reason}
        _started -> :ok
      end
    end
  end

  defp failures(results, module), do: for({id, reason} <- results, do: {module, id, reason})
end
