defmodule BeamDeploy.HotUpgrade.Stash do
  @moduledoc false
  # Responsible for: keeping a process's state inside that process, for the time in which it may have to come back.
  # Not for: when that is.
  #
  # These functions run in the process itself, sent with `replace_state`. Nothing is copied that way: asking 10,000
  # processes for their states would cost more than the whole rest of an upgrade. For the same reason nobody asks for
  # the answers: they would hold the state.

  @key {__MODULE__, :state}

  @spec keep(state) :: state when state: term()
  def keep(state) do
    Process.put(@key, {:ok, state})
    state
  end

  @doc "A state that was not kept was not converted either."
  @spec restore(term()) :: term()
  def restore(state) do
    case Process.delete(@key) do
      {:ok, kept} -> kept
      nil -> state
    end
  end

  @spec drop(state) :: state when state: term()
  def drop(state) do
    Process.delete(@key)
    state
  end

  # An event manager runs the function for each of its handlers.

  @typep handler :: {module(), id :: term(), state :: term()}

  @spec keep_handler(handler()) :: handler()
  def keep_handler({module, id, state} = handler) do
    Process.put({@key, module, id}, {:ok, state})
    handler
  end

  @spec restore_handler(handler()) :: handler()
  def restore_handler({module, id, state}) do
    case Process.delete({@key, module, id}) do
      {:ok, kept} -> {module, id, kept}
      nil -> {module, id, state}
    end
  end

  @spec drop_handler(handler()) :: handler()
  def drop_handler({module, id, _state} = handler) do
    Process.delete({@key, module, id})
    handler
  end
end
