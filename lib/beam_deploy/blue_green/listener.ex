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
  @type host :: :inet.ip_address() | {:local, Path.t()}
  @type address :: {host(), :inet.port_number(), only_v6 :: boolean() | nil}
  @type mode :: :steered | :overlap

  def start_link(options), do: GenServer.start_link(__MODULE__, options, name: __MODULE__)

  @doc """
  A descriptor with which a peer of this side serves an address; opened when first asked for. It belongs to the caller,
  who has to close it.
  """
  @spec descriptor(side(), address()) :: {:ok, [non_neg_integer()]} | :overlap | {:error, term()}
  def descriptor(side, address), do: GenServer.call(__MODULE__, {:descriptor, side, address})

  @doc "All new connections, of every address that this side serves, go to it from now on."
  @spec cutover(side()) :: :ok | {:error, {:cutover_failed, term()}}
  def cutover(side), do: GenServer.call(__MODULE__, {:cutover, side})

  @doc "Whether any of this side's addresses has another socket that new connections can go to."
  @spec moved?(side()) :: boolean()
  def moved?(side), do: GenServer.call(__MODULE__, {:moved, side}) != []

  @doc "How many connections wait in the accept queues of this side, of addresses that the other side serves now."
  @spec queued(side()) :: non_neg_integer()
  def queued(side), do: GenServer.call(__MODULE__, {:queued, side})

  @doc """
  How many handshakes with addresses of this side are under way, of an age in milliseconds within the bounds. Takes the
  kernel some 20 ms.
  """
  @spec handshakes(side(), non_neg_integer(), non_neg_integer()) ::
          {:ok, non_neg_integer()} | {:error, term()}
  def handshakes(side, youngest, oldest) do
    # In the caller: the server stays able to answer.
    GenServer.call(__MODULE__, {:moved, side})
    |> Enum.group_by(&v6?/1, fn {_host, port, _only_v6} -> port end)
    |> Map.delete(nil)
    |> Enum.reduce_while({:ok, 0}, fn {v6?, ports}, {:ok, sum} ->
      case Native.handshakes(v6?, ports, youngest, oldest) do
        {:ok, count} -> {:cont, {:ok, sum + count}}
        {:error, reason} -> {:halt, {:error, reason}}
      end
    end)
  end

  defp v6?({ip, _port, _only_v6}) when tuple_size(ip) == 8, do: true
  defp v6?({ip, _port, _only_v6}) when tuple_size(ip) == 4, do: false
  defp v6?(_local), do: nil

  @doc """
  A peer of this side is gone: addresses that no other side serves are given up, and what waits in its queues is reset,
  since nobody will serve it. Returns how many connections those were.
  """
  @spec release(side()) :: {:ok, discarded :: non_neg_integer()}
  def release(side), do: GenServer.call(__MODULE__, {:release, side})

  @doc "The addresses served, by whom, and whether they are steered."
  @spec info() :: %{mode: mode(), active: side(), addresses: [map()]}
  def info, do: GenServer.call(__MODULE__, :info)

  @impl true
  def init(options) do
    Process.flag(:trap_exit, true)

    {:ok,
     %{mode: Keyword.fetch!(options, :mode), active: :blue, entries: %{}}
     |> tap(&warn_if_asked_for/1)}
  end

  @impl true
  def handle_call({:descriptor, side, address}, _from, state) do
    address = complete(address)

    with {:ok, entry} <- fetch_or_open(state, side, address),
         state = put_in(state.entries[address], use_by(entry, side)),
         {:ok, number} <- duplicate(entry, side) do
      {:reply, {:ok, [number]}, state}
    else
      {:overlap, reason} -> {:reply, :overlap, fall_back(state, side, address, reason)}
      {:error, reason} -> {:reply, {:error, reason}, state}
    end
  end

  def handle_call({:cutover, side}, _from, state) do
    case steer_all(state, side) do
      :ok ->
        {:reply, :ok, %{state | active: side}}

      {:error, reason} ->
        :ok = steer_all(state, state.active)
        {:reply, {:error, {:cutover_failed, reason}}, state}
    end
  end

  def handle_call({:moved, side}, _from, state),
    do: {:reply, for({address, _entry} <- moved(state, side), do: address), state}

  def handle_call({:queued, side}, _from, state) do
    queued =
      for {_address, entry} <- moved(state, side), reduce: 0 do
        sum -> sum + queue(entry.pair, side)
      end

    {:reply, queued, state}
  end

  def handle_call({:release, side}, _from, state) do
    {kept, discarded} =
      Enum.reduce(state.entries, {%{}, 0}, fn {address, entry}, {kept, discarded} ->
        case release_entry(entry, side) do
          {nil, count} -> {kept, discarded + count}
          {entry, count} -> {Map.put(kept, address, entry), discarded + count}
        end
      end)

    {:reply, {:ok, discarded}, %{state | entries: kept}}
  end

  def handle_call(:info, _from, state) do
    addresses =
      for {{ip, port, _only_v6}, entry} <- state.entries,
          do: %{ip: ip, port: port, sides: Enum.sort(entry.users), mode: mode(entry)}

    overlap? = state.mode == :overlap or Enum.any?(addresses, &(&1.mode == :overlap))

    {:reply,
     %{
       mode: if(overlap?, do: :overlap, else: :steered),
       active: state.active,
       addresses: addresses
     }, state}
  end

  # Local sockets have names on disk.
  @impl true
  def terminate(_reason, state),
    do: for({_address, %{pair: pair}} when pair != nil <- state.entries, do: close(pair))

  # What is left to the system's default makes two addresses of one, so it is looked up.
  defp complete({ip, port, _only_v6}) when tuple_size(ip) == 4, do: {ip, port, nil}

  defp complete({ip, port, nil}) when tuple_size(ip) == 8 do
    {ip, port, match?({:ok, "1" <> _}, File.read("/proc/sys/net/ipv6/bindv6only"))}
  end

  defp complete(address), do: address

  defp fetch_or_open(state, side, address) do
    case state.entries do
      %{^address => %{pair: nil}} -> {:overlap, :known}
      %{^address => entry} -> {:ok, entry}
      _none -> open(state, side, address)
    end
  end

  # An address that nobody served until now belongs to whoever asks for it: at once, when nobody else serves; from the
  # cutover on, when an incoming peer asks, if the system lets connections be held back until then.
  defp open(state, side, address) do
    with {:ok, pair} <- open_pair(state, side, address),
         :ok <- if(side == state.active, do: try_steering(pair, side), else: :ok) do
      {:ok, %{pair: pair, users: []}}
    end
  end

  defp open_pair(_state, _side, {{:local, path}, _port, _only_v6}),
    do: Native.listener_open_local(path, @backlog)

  defp open_pair(%{mode: :overlap}, _side, _address), do: {:overlap, :configured}

  defp open_pair(state, side, {ip, port, only_v6}) do
    alone? = not Enum.any?(Map.keys(state.entries), &match?({_ip, ^port, _only_v6}, &1))

    with {:error, {:unsteerable, reason}} <-
           Native.listener_open_inet(
             List.to_string(:inet.ntoa(ip)),
             port,
             only_v6,
             @backlog,
             alone?,
             @sides[side]
           ),
         do: {:overlap, reason}
  end

  # Whether a system can steer shows when it is asked to for the first time.
  defp try_steering(pair, side) do
    case Native.listener_steer(pair, @sides[side]) do
      :ok -> :ok
      {:error, {:unsteerable, reason}} -> close(pair) && {:overlap, reason}
      {:error, reason} -> close(pair) && {:error, reason}
    end
  end

  defp use_by(entry, side), do: %{entry | users: Enum.uniq([side | entry.users])}

  defp duplicate(entry, side), do: Native.listener_descriptor(entry.pair, @sides[side])

  defp fall_back(state, side, address, reason) do
    warn_of_overlap(reason)
    entry = Map.get(state.entries, address, %{pair: nil, users: []})
    put_in(state.entries[address], use_by(entry, side))
  end

  defp warn_if_asked_for(%{mode: :overlap}) do
    Logger.warning(
      "beam_deploy: configured with listeners: :overlap; old and new peers share their ports by plain SO_REUSEPORT, " <>
        "which loses connections at a swap"
    )
  end

  defp warn_if_asked_for(_state), do: :ok

  defp warn_of_overlap(reason) when reason in [:configured, :known], do: :ok

  defp warn_of_overlap(reason) do
    Logger.warning(
      "beam_deploy: this system cannot steer connections between listening sockets (#{inspect(reason)}); " <>
        "old and new peers will share the port by plain SO_REUSEPORT, which loses connections at a swap"
    )
  end

  # An address that this side does not serve stays with the one that does.
  defp steer_all(state, side) do
    entries =
      for {_address, %{pair: pair, users: users}} when pair != nil <- state.entries,
          side in users,
          do: pair

    Enum.reduce_while(entries, :ok, fn pair, :ok ->
      case Native.listener_steer(pair, @sides[side]) do
        :ok -> {:cont, :ok}
        {:error, reason} -> {:halt, {:error, reason}}
      end
    end)
  end

  defp moved(state, side),
    do:
      for(
        {_address, %{pair: pair, users: [_, _]}} = entry when pair != nil <- state.entries,
        side != state.active,
        do: entry
      )

  defp queue(pair, side) do
    {:ok, queued} = Native.listener_queue(pair, @sides[side])
    queued
  end

  defp release_entry(%{users: users} = entry, side) do
    case {List.delete(users, side), entry.pair} do
      {[], nil} ->
        {nil, 0}

      {[], pair} ->
        count = discard(pair, side)
        close(pair)
        {nil, count}

      {^users, _pair} ->
        {entry, 0}

      {left, nil} ->
        {%{entry | users: left}, 0}

      {left, pair} ->
        {%{entry | users: left}, discard(pair, side)}
    end
  end

  defp discard(pair, side) do
    {:ok, count} = Native.listener_discard(pair, @sides[side])
    count
  end

  defp close(pair) do
    with {:error, reason} <- Native.listener_close(pair) do
      :ok =
        Logger.warning(
          "beam_deploy: the name of a local socket could not be removed: #{inspect(reason)}"
        )
    end
  end

  defp mode(%{pair: nil}), do: :overlap
  defp mode(_entry), do: :steered
end
