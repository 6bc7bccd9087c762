defmodule BeamDeploy.HotUpgrade.Stash do
  @moduledoc false
  # Responsible for: keeping a process's state inside that process, for the time in which it may have to come back.
  # Not for: when that is.
  #
  # These functions run in the process itself, sent with `replace_state`. Nothing is copied that way: asking 10,000
  # processes for their states would cost more than the whole rest of an upgrade. What they throw leaves the state as
  # it is, and makes a short answer; the answer to a replaced state is the state.

  @key {__MODULE__, :state}

  @spec keep(term()) :: no_return()
  def keep(state) do
    Process.put(@key, {:ok, state})
    throw(:kept)
  end

  @spec restore(term()) :: term()
  def restore(_state) do
    case Process.delete(@key) do
      {:ok, state} -> state
      nil -> throw(:nothing_kept)
    end
  end

  @spec drop(term()) :: no_return()
  def drop(_state) do
    Process.delete(@key)
    throw(:dropped)
  end

  # An event manager runs the function for each of its handlers.

  @spec keep_handler({module(), term(), term()}) :: no_return()
  def keep_handler({module, id, state}) do
    Process.put({@key, module, id}, {:ok, state})
    throw(:kept)
  end

  @spec restore_handler({module(), term(), term()}) :: {module(), term(), term()}
  def restore_handler({module, id, _state}) do
    case Process.delete({@key, module, id}) do
      {:ok, state} -> {module, id, state}
      nil -> throw(:nothing_kept)
    end
  end

  @spec drop_handler({module(), term(), term()}) :: no_return()
  def drop_handler({module, id, _state}) do
    Process.delete({@key, module, id})
    throw(:dropped)
  end
end
