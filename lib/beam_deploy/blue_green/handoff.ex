defmodule BeamDeploy.BlueGreen.Handoff do
  @moduledoc false
  # Responsible for: the values that cross a swap, on the parent.
  # Not for: what they mean.

  use Agent

  def start_link(_options), do: Agent.start_link(__MODULE__, :new, [], name: __MODULE__)

  @doc false
  def new, do: %{}

  @spec put(term(), term()) :: :ok
  def put(key, value), do: Agent.update(__MODULE__, Map, :put, [key, value])

  @spec get(term()) :: term() | nil
  def get(key), do: Agent.get(__MODULE__, Map, :get, [key])

  @spec all() :: map()
  def all, do: Agent.get(__MODULE__, Function, :identity, [])

  @spec clear() :: :ok
  def clear, do: Agent.update(__MODULE__, Map, :take, [[]])
end
