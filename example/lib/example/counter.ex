defmodule Example.Counter do
  @moduledoc """
  A number in memory that a swap hands over.

  A new version starts with what the old one has at that moment. Once the old one is gone, `after_cutover/1` puts its last
  word in the place of that: no click is lost, whichever version took it.
  """
  use GenServer

  def start_link(_), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)
  def value, do: GenServer.call(__MODULE__, :value)
  def increment, do: GenServer.call(__MODULE__, :increment)

  def after_cutover(_state),
    do: GenServer.call(__MODULE__, {:adopt, BeamDeploy.get_handoff(:counter)})

  @impl true
  def init(nil) do
    # So that terminate/2 runs.
    Process.flag(:trap_exit, true)
    {:ok, %{inherited: inherited(BeamDeploy.outgoing_peer()), own: 0}}
  end

  @impl true
  def handle_call(:value, _from, state), do: {:reply, sum(state), state}

  def handle_call(:increment, _from, state) do
    state = %{state | own: state.own + 1}
    {:reply, sum(state), state}
  end

  def handle_call({:adopt, nil}, _from, state), do: {:reply, :ok, state}
  def handle_call({:adopt, value}, _from, state), do: {:reply, :ok, %{state | inherited: value}}

  @impl true
  def terminate(_reason, state), do: BeamDeploy.put_handoff(:counter, sum(state))

  defp sum(state), do: state.inherited + state.own

  defp inherited(nil), do: 0
  defp inherited(outgoing), do: :erpc.call(outgoing, __MODULE__, :value, [], 5_000)
end
