defmodule BeamDeploy.Integration.ThousandIsland do
  @moduledoc false
  # Responsible for: the connections of Thousand Island, and of Bandit on it, while they drain.
  # Not for: Bandit's options, or when something is done to a connection.
  #
  # A connection is a GenServer with the state `{%ThousandIsland.Socket{}, handler_state}` that runs requests in its
  # callbacks: it answers a system message only between two of them.

  alias BeamDeploy.HotUpgrade.Processes
  alias BeamDeploy.PeerNode.Connection

  @compile {:no_warn_undefined, ThousandIsland}

  @doc "The supervisors of all servers on this node."
  @spec servers() :: [pid()]
  def servers do
    supervisors = Processes.by_initial_call(&match?({:supervisor, ThousandIsland.Server, 1}, &1))
    for {pid, _call} <- supervisors, do: pid
  end

  @doc "Their connections' processes."
  @spec connections([pid()]) :: [pid()]
  def connections(servers) do
    Enum.flat_map(servers, fn server ->
      case connection_pids(server) do
        {:ok, pids} -> pids
        :error -> []
      end
    end)
  end

  defp connection_pids(server) do
    ThousandIsland.connection_pids(server)
  catch
    # It was stopped meanwhile, and its connections with it.
    :exit, _reason -> :error
  end

  @doc """
  What a connection is doing, said by itself. One that speaks HTTP/1.1 answers its next request with
  `connection: close` from then on, one that speaks HTTP/2 tells its client to begin no more.
  """
  @spec look(term(), non_neg_integer()) :: {BeamDeploy.PeerNode.Drain.observation(), term()}
  # It has not been handed its socket yet.
  def look({nil, _options} = connection, _known_idle), do: {:busy, connection}

  def look(
        {%{socket: raw}, %{handler_module: Bandit.HTTP1.Handler, plug: _} = state} = connection,
        known_idle
      ) do
    connection = put_elem(connection, 1, last_request(state))
    {{:idle, Connection.idle_for(raw, known_idle), raw}, connection}
  end

  def look({%{socket: raw}, %{handler_module: Bandit.HTTP2.Handler}} = connection, known_idle) do
    # Once: the process dictionary is this connection's.
    unless Process.put({__MODULE__, :going_away}, true), do: Connection.go_away(raw)

    if Connection.workers() == [],
      do: {{:idle, Connection.idle_for(raw, known_idle), nil}, connection},
      else: {:busy, connection}
  end

  def look(
        {_socket, %{handler_module: Bandit.WebSocket.Handler} = state} = connection,
        _known_idle
      ),
      do: {{:websocket, websocket(state)}, connection}

  # Another handler: it is told what its supervisor would tell it.
  def look(connection, _known_idle), do: {:leaving, connection}

  defp last_request(%{plug: {__MODULE__, _plug}} = state), do: state

  # The plug announces it in the answer, on which most versions of Bandit close the connection; up to 1.5 it takes
  # the limit to have it closed.
  defp last_request(%{plug: plug, opts: opts} = state) do
    http_1 = Keyword.put(opts.http_1, :max_requests, 1)
    %{state | plug: {__MODULE__, plug}, opts: %{opts | http_1: http_1}}
  end

  @doc false
  # The plug of a connection's last request, around its own.
  @spec call(struct(), {module() | function(), term()}) :: struct()
  def call(conn, {plug, options}) do
    conn = BeamDeploy.Plug.call(conn, [])
    if is_atom(plug), do: plug.call(conn, options), else: plug.(conn, options)
  end

  defp websocket(%{connection: %{websock: handler}}) do
    if function_exported?(handler, :__channel__, 1), do: :phoenix, else: :plain
  end

  defp websocket(_state), do: :plain

  @doc "Asks a WebSocket's client to close, in the connection's process."
  @spec close_websocket(term()) :: :ok
  def close_websocket({%{socket: raw}, _state}), do: Connection.close_websocket(raw)

  @doc """
  Ends a connection on which no request ever came, as browsers and load balancers open them in advance: its process waits
  for the first bytes, or for those of a TLS handshake, and handles no message until then. `waited` is for how
  long it has not answered.
  """
  @spec abandon_unused(pid(), non_neg_integer(), non_neg_integer()) :: :abandoned | :in_use
  def abandon_unused(pid, idle, waited) do
    with {:current_stacktrace, stack} <- Process.info(pid, :current_stacktrace),
         true <- Enum.any?(stack, &first_bytes?/1),
         [links: links, monitors: monitors] <- Process.info(pid, [:links, :monitors]) do
      close_unused(Enum.find(links, &is_port/1), monitors, idle, waited)
    else
      _used_or_gone -> :in_use
    end
  end

  defp first_bytes?({Bandit.InitialHandler, _function, _arity, _location}), do: true
  defp first_bytes?({ThousandIsland.Transports.SSL, :handshake, _arity, _location}), do: true
  defp first_bytes?(_frame), do: false

  # What the process waits in returns as if the client had closed, and the handler ends in order.
  defp close_unused(socket, _monitors, idle, waited) when is_port(socket) do
    if Connection.idle_for(socket, waited) >= idle do
      :ok = Connection.shut_down(socket)
      :abandoned
    else
      :in_use
    end
  end

  # With TLS the socket belongs to a process of ssl, which this one is calling.
  defp close_unused(nil, [process: tls], idle, waited) do
    if tls_idle_for(tls, waited) >= idle do
      send(tls, {:system, {tls, make_ref()}, {:terminate, :normal}})
      :abandoned
    else
      :in_use
    end
  end

  defp close_unused(nil, _monitors, _idle, _waited), do: :in_use

  # A client may be slow, and in the middle of its handshake.
  defp tls_idle_for(tls, waited) do
    with {:links, links} <- Process.info(tls, :links),
         port when is_port(port) <- Enum.find(links, &is_port/1) do
      Connection.idle_for(port, waited)
    else
      _none -> waited
    end
  end
end
