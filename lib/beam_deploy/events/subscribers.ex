defmodule BeamDeploy.Events.Subscribers do
  @moduledoc false
  # Responsible for: who wants to hear of swaps and hot upgrades, on the parent and on its peers.
  # Not for: what happened.

  use GenServer

  alias BeamDeploy.{PeerNode, Remote}

  # A parent that does not answer is no reason to hold up what is being told.
  @timeout 5_000

  def start_link(_options), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  @doc "From now on the process gets `{:beam_deploy, event, metadata}`, until it ends."
  @spec add(pid()) :: :ok
  def add(pid) when is_pid(pid), do: GenServer.call(__MODULE__, {:add, pid})

  @doc "Tells all subscribers. On return the messages are sent. A peer asks its parent to."
  @spec publish([atom()], map()) :: :ok
  def publish(event, metadata) do
    case PeerNode.identity() do
      nil -> publish_here(event, metadata)
      %{parent: parent} -> publish_there(parent, event, metadata)
    end
  end

  @doc "As `publish/2`, on the parent."
  @spec publish_here([atom()], map()) :: :ok
  def publish_here(event, metadata) do
    if Process.whereis(__MODULE__),
      do: GenServer.call(__MODULE__, {:publish, event, metadata}),
      else: :ok
  end

  defp publish_there(parent, event, metadata) do
    :erpc.call(parent, Remote, :publish, [event, metadata], @timeout)
  catch
    # Whoever listens is on the parent or on a peer that needs it: with the parent gone there is nobody to tell.
    :error, {:erpc, _reason} -> :ok
  end

  @impl true
  def init([]), do: {:ok, %{}}

  @impl true
  def handle_call({:add, pid}, _from, subscribers),
    do: {:reply, :ok, Map.put_new_lazy(subscribers, pid, fn -> Process.monitor(pid) end)}

  def handle_call({:publish, event, metadata}, _from, subscribers) do
    for {pid, _monitor} <- subscribers do
      # A subscriber behind a connection that is stuck must not stop the swap that it hears of.
      _sent = :erlang.send(pid, {:beam_deploy, event, metadata}, [:nosuspend, :noconnect])
    end

    {:reply, :ok, subscribers}
  end

  @impl true
  def handle_info({:DOWN, _monitor, :process, pid, _reason}, subscribers),
    do: {:noreply, Map.delete(subscribers, pid)}

  def handle_info(_message, subscribers), do: {:noreply, subscribers}
end
