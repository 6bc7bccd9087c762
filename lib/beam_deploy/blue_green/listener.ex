defmodule BeamDeploy.BlueGreen.Listener do
  @moduledoc false
  # Responsible for: the listening sockets across swaps: two for each address, one a side, and which of them gets new
  # connections. They live as long as the parent serves the address: nothing is closed at a swap, going back is one call,
  # and while a peer is booted again its connections wait in the queue.
  # Not for: releases, nodes, or what is done with a connection.

  use GenServer

  alias BeamDeploy.Native

  require Logger

  @sides [blue: 0, green: 1]
  # What the kernel makes of it is bounded by net.core.somaxconn.
  @backlog 4096

  @type side :: :blue | :green
  @type address :: {:inet.ip_address(), :inet.port_number(), only_v6 :: boolean() | nil}
  @type mode :: :steered | :overlap

  def start_link(options), do: GenServer.start_link(__MODULE__, options, name: __MODULE__)

  @doc "The descriptor with which a peer of this side serves an address; opened when first asked for."
  @spec descriptor(side(), address()) :: {:ok, [non_neg_integer()]} | :overlap | {:error, term()}
  def descriptor(side, address), do: GenServer.call(__MODULE__, {:descriptor, side, address})

  @doc "All new connections, of every address, go to this side from now on."
  @spec cutover(side()) :: :ok | {:error, term()}
  def cutover(side), do: GenServer.call(__MODULE__, {:cutover, side})

  @doc "How many connections wait in this side's accept queues."
  @spec queued(side()) :: non_neg_integer()
  def queued(side), do: GenServer.call(__MODULE__, {:queued, side})

  @doc "A peer of this side is gone: addresses that no other side serves are given up."
  @spec release(side()) :: :ok
  def release(side), do: GenServer.call(__MODULE__, {:release, side})

  @doc "The addresses served, by whom, and whether they are steered."
  @spec info() :: %{mode: mode(), active: side(), addresses: [map()]}
  def info, do: GenServer.call(__MODULE__, :info)

  @impl true
  def init(options) do
    {:ok, %{mode: Keyword.fetch!(options, :mode), active: :blue, pairs: %{}}}
  end

  @impl true
  def handle_call({:descriptor, _side, _address}, _from, %{mode: :overlap} = state),
    do: {:reply, :overlap, state}

  def handle_call({:descriptor, side, address}, _from, state) do
    with {:ok, entry, state} <- fetch_or_open(state, side, address),
         {:ok, number} <- Native.listener_descriptor(entry.pair, @sides[side]) do
      entry = %{entry | users: Enum.uniq([side | entry.users])}
      {:reply, {:ok, [number]}, put_in(state.pairs[address], entry)}
    else
      {:error, reason} -> {:reply, {:error, reason}, state}
      {:overlap, state} -> {:reply, :overlap, state}
    end
  end

  def handle_call({:cutover, side}, _from, state) do
    case steer_all(Map.values(state.pairs), side) do
      :ok ->
        {:reply, :ok, %{state | active: side}}

      {:error, reason} ->
        :ok = steer_all(Map.values(state.pairs), state.active)
        {:reply, {:error, reason}, state}
    end
  end

  def handle_call({:queued, side}, _from, state) do
    queued =
      for {_address, entry} <- state.pairs, reduce: 0 do
        sum -> sum + queue(entry.pair, side)
      end

    {:reply, queued, state}
  end

  # A pair goes when its last user does; its resource closes both sockets as soon as it is collected, which is asked for
  # here because a listener that is left over would accept connections that nobody serves.
  def handle_call({:release, side}, _from, state) do
    pairs =
      for {address, entry} <- state.pairs,
          users = List.delete(entry.users, side),
          users != [],
          into: %{},
          do: {address, %{entry | users: users}}

    {:reply, :ok, %{state | pairs: pairs}, {:continue, :collect}}
  end

  def handle_call(:info, _from, state) do
    addresses =
      for {{ip, port, _only_v6}, entry} <- state.pairs,
          do: %{ip: ip, port: port, sides: Enum.sort(entry.users)}

    {:reply, %{mode: state.mode, active: state.active, addresses: addresses}, state}
  end

  @impl true
  def handle_continue(:collect, state) do
    true = :erlang.garbage_collect()
    {:noreply, state}
  end

  defp fetch_or_open(state, side, address) do
    case state.pairs do
      %{^address => entry} -> {:ok, entry, state}
      _none -> open(state, side, address)
    end
  end

  # Nobody served this address until now, so its first connections belong to whoever asks for it.
  defp open(state, side, {ip, port, only_v6}) do
    with {:ok, pair} <-
           Native.listener_open(List.to_string(:inet.ntoa(ip)), port, only_v6, @backlog) do
      case Native.listener_steer(pair, @sides[side]) do
        :ok -> {:ok, %{pair: pair, users: []}, state}
        {:error, reason} -> {:overlap, fall_back(state, reason)}
      end
    end
  end

  defp fall_back(state, reason) do
    Logger.warning(
      "beam_deploy: this system cannot steer connections between listening sockets (#{inspect(reason)}); " <>
        "old and new peers will share the port with plain SO_REUSEPORT, which loses connections at a swap"
    )

    %{state | mode: :overlap}
  end

  defp steer_all(entries, side) do
    Enum.reduce_while(entries, :ok, fn entry, :ok ->
      case Native.listener_steer(entry.pair, @sides[side]) do
        :ok -> {:cont, :ok}
        {:error, reason} -> {:halt, {:error, reason}}
      end
    end)
  end

  defp queue(pair, side) do
    {:ok, queued} = Native.listener_queue(pair, @sides[side])
    queued
  end
end
