defmodule BeamDeploy.PeerNode.Drain do
  @moduledoc false
  # Responsible for: the connections that an outgoing peer has accepted, once no new ones reach it: each ends without
  # losing a request, all of them side by side.
  # Those of the application's own listeners are waited for.
  # Not for: how a server names, shows and ends its connections (one module for each under `BeamDeploy.Integration`), or
  # for stopping the node afterwards.
  #
  # HTTP/1.1 lets either side close an idle connection, and a client may send a request at that very moment: then it is
  # lost, and nothing the server does can help (RFC 9112, 9.3.1 leaves it to the client to repeat it). So a connection in
  # use is never closed between two requests: its next answer says `connection: close`. Only one from which nothing
  # has come for `@idle` is closed unasked; the kernel is asked for that time in the connection's own process, and the
  # next thing there is to send the FIN, so that a request is lost only if it is on the wire just then.
  #
  # Every look at a connection is a system message (see `:sys`), which its process handles between two messages of its
  # own. All are sent before any answer is waited for: a process in the middle of a request delays nobody else.

  alias BeamDeploy.Integration
  alias BeamDeploy.PeerNode.{Connection, OwnListeners}

  require Logger

  @servers [Integration.ThousandIsland, Integration.Ranch]
  @draining {__MODULE__, :draining}

  # How often new connections and due steps are looked for; milliseconds, like all below.
  @tick 10
  # Clients that ask every second should be met by their next answer rather than by the end of this.
  @idle 1_300
  # After how long a busy connection is looked at again.
  @busy 50
  # How long a client has to answer the close frame of a WebSocket, and a process to end that was told to.
  @patience 2_000
  # A WebSocket that was closed comes back at once, and as a LiveView it costs the new peer a mount: so many a second, or
  # as many more as it takes to be done in half of the time that is left.
  @websockets_per_second 250
  # What is cut after the timeout may say goodbye.
  @goodbye 500

  @type status ::
          {:look_at | :looked_at | :asked_to_close | :closing, integer()}
          | {:websocket, :phoenix | :plain}
          | :leaving
  @type step :: :look | :check | :close | :kill | :wait
  @type report ::
          {:idle, non_neg_integer()} | :busy | :leaving | {:websocket, :phoenix | :plain}
  @typedoc "A server's own report; the socket is one that may be closed just so."
  @type observation ::
          {:idle, non_neg_integer(), Connection.socket() | nil}
          | :busy
          | :leaving
          | {:websocket, :phoenix | :plain}
  @type result :: %{ended: non_neg_integer(), cut: non_neg_integer()}

  @doc "Whether this node was told to finish what it has accepted."
  @spec draining?() :: boolean()
  def draining?, do: :persistent_term.get(@draining, false)

  @doc """
  Ends all connections of the servers that are known here: those in use when their requests are done, WebSockets after
  the idle ones. What is left after the timeout is cut. Returns when none is left, and none of a listener that the
  application opened itself, or when their time is up as well: they are the supervision tree's to end.
  """
  @spec run(timeout()) :: result()
  def run(timeout) do
    :persistent_term.put(@draining, true)
    deadline = if timeout == :infinity, do: :infinity, else: now() + timeout
    # In a process of its own, so that answers which come late go with it.
    result = __MODULE__ |> Task.async(:drain, [timeout, @servers]) |> Task.await(:infinity)
    await_own(deadline)
    result
  end

  defp await_own(deadline) do
    left = OwnListeners.await_end(deadline)

    if left > 0 do
      Logger.warning(
        "beam_deploy: #{left} connections of listeners that the application opened had not ended in time; " <>
          "its supervision tree is stopped now"
      )
    end
  end

  @doc false
  def drain(timeout, servers) do
    started = now()

    loop(%{
      started: started,
      deadline: if(timeout == :infinity, do: :infinity, else: started + timeout),
      # A system message is answered with the whole state of the process: sent to one that has ended, nothing is copied.
      nobody: spawn(Function, :identity, [:ok]),
      servers: Map.new(servers, &{&1, &1.servers()}),
      connections: %{},
      next_websocket: started,
      ended: 0,
      cut: 0
    })
  end

  defp loop(state) do
    now = now()
    state = state |> discover() |> take_steps(now) |> close_websockets(now)

    cond do
      state.connections == %{} -> Map.take(state, [:ended, :cut])
      now >= state.deadline -> cut(state)
      true -> state |> collect(now + @tick) |> loop()
    end
  end

  defp discover(state) do
    for {server, instances} <- state.servers,
        pid <- server.connections(instances),
        not is_map_key(state.connections, pid),
        reduce: state do
      state ->
        Process.monitor(pid)

        connection = %{
          server: server,
          status: {:look_at, state.started},
          looked_at: nil,
          idle_since: nil
        }

        put_in(state.connections[pid], connection)
    end
  end

  defp take_steps(state, now) do
    for {pid, connection} <- state.connections, reduce: state do
      state -> take(next(connection.status, now), state, pid, connection, now)
    end
  end

  @doc "What is to be done with a connection now. Pure."
  @spec next(status(), integer()) :: step()
  def next({:look_at, due}, now) when now >= due, do: :look
  def next({:looked_at, since}, now) when now - since >= @busy, do: :check
  def next({:asked_to_close, since}, now) when now - since >= @patience, do: :close
  def next({:closing, since}, now) when now - since >= @patience, do: :kill
  def next(_status, _now), do: :wait

  @doc "What a connection's report makes of it. Pure."
  @spec judge(report(), integer()) :: status()
  def judge({:idle, milliseconds}, now), do: {:look_at, now + max(@idle - milliseconds, @tick)}
  def judge(:busy, now), do: {:look_at, now + @busy}
  def judge(:leaving, _now), do: :leaving
  def judge({:websocket, _kind} = status, _now), do: status

  @doc "The milliseconds from one WebSocket that is closed to the next. Pure."
  @spec interval(pos_integer(), integer() | :infinity) :: float()
  def interval(_count, :infinity), do: 1_000 / @websockets_per_second
  def interval(count, left), do: min(interval(count, :infinity), max(left, 0) / 2 / count)

  defp take(:wait, state, _pid, _connection, _now), do: state

  defp take(:look, state, pid, %{server: server, idle_since: idle_since}, now) do
    known_idle = if idle_since, do: now - idle_since, else: 0
    visit(pid, state.nobody, :look, [self(), state.nobody, server, known_idle])
    state = put_in(state.connections[pid].looked_at, now)
    put_status(state, pid, {:looked_at, now})
  end

  # No answer yet: a request is in progress, or the process waits for the first one of its client.
  defp take(:check, state, pid, connection, now) do
    case connection.server.abandon_unused(pid, @idle, now - connection.looked_at) do
      :abandoned -> put_status(state, pid, {:closing, now})
      :in_use -> put_status(state, pid, {:looked_at, now})
    end
  end

  defp take(:close, state, pid, _connection, now) do
    terminate(pid, state.nobody)
    put_status(state, pid, {:closing, now})
  end

  defp take(:kill, state, pid, _connection, now) do
    Process.exit(pid, :kill)
    put_status(state, pid, {:closing, now})
  end

  defp put_status(state, pid, status), do: put_in(state.connections[pid].status, status)

  # WebSockets wait until the idle connections had their time: a page and its socket should come from the same version.
  defp close_websockets(state, now) do
    sockets = for {pid, %{status: {:websocket, _kind}}} <- state.connections, do: pid

    if sockets != [] and (now - state.started > @idle or not any_idle?(state)) do
      pause = interval(length(sockets), left(state.deadline, now))

      close_due(
        sockets,
        %{state | next_websocket: max(state.next_websocket, now - @tick)},
        pause,
        now
      )
    else
      state
    end
  end

  defp any_idle?(state),
    do: Enum.any?(state.connections, &match?({_pid, %{status: {:look_at, _due}}}, &1))

  defp close_due([pid | rest], %{next_websocket: due} = state, pause, now) when due <= now do
    state = close_websocket(state, pid, now)
    close_due(rest, %{state | next_websocket: due + pause}, pause, now)
  end

  defp close_due(_none_due, state, _pause, _now), do: state

  defp close_websocket(state, pid, now) do
    case state.connections[pid] do
      # What Phoenix's own drainer makes its channels send: closes with 1012, on which clients reconnect.
      %{status: {:websocket, :phoenix}} -> send(pid, :socket_drain)
      %{server: server} -> visit(pid, state.nobody, :say_goodbye, [server])
    end

    put_status(state, pid, {:asked_to_close, now})
  end

  # Up to here the connections went on as they wanted; now time is up.
  defp cut(state) do
    sockets = for {pid, %{status: {:websocket, _kind}}} <- state.connections, do: pid
    state = Enum.reduce(sockets, state, &close_websocket(&2, &1, now()))

    for {pid, _connection} <- state.connections,
        pid not in sockets,
        do: terminate(pid, state.nobody)

    state = collect_until_empty(state, now() + @goodbye)

    left = map_size(state.connections)

    if left > 0,
      do: Logger.warning("beam_deploy: #{left} connections had not ended in time and are cut")

    for {pid, _connection} <- state.connections, do: Process.exit(pid, :kill)
    %{ended: state.ended, cut: left}
  end

  defp collect_until_empty(state, deadline) do
    if state.connections == %{} or now() >= deadline,
      do: state,
      else: state |> collect(min(deadline, now() + @tick)) |> collect_until_empty(deadline)
  end

  # Takes in what the connections say until then, or until there are none.
  defp collect(%{connections: none} = state, _until) when none == %{}, do: state

  defp collect(state, until) do
    receive do
      {:visited, pid, report} -> state |> note(pid, report) |> collect(until)
      {:DOWN, _monitor, :process, pid, _reason} -> state |> forget(pid) |> collect(until)
    after
      max(until - now(), 0) -> state
    end
  end

  defp note(state, pid, report) do
    case state.connections do
      %{^pid => connection} -> put_in(state.connections[pid], noted(connection, report, now()))
      _ended -> state
    end
  end

  defp noted(connection, {:idle, _} = report, now),
    do: %{connection | status: judge(report, now), idle_since: connection.idle_since || now}

  defp noted(connection, report, now),
    do: %{connection | status: judge(report, now), idle_since: nil}

  defp forget(state, pid),
    do: %{state | connections: Map.delete(state.connections, pid), ended: state.ended + 1}

  # A visit: a function that runs in the connection's process, between two of its messages.

  defp visit(pid, nobody, function, arguments),
    do:
      system_message(
        pid,
        nobody,
        {:replace_state, &apply(__MODULE__, function, [&1 | arguments])}
      )

  @doc false
  # Should it end, it does so after what it has been sent by now.
  def look(connection, drainer, nobody, server, known_idle) do
    {report, connection} = server.look(connection, known_idle)
    report = decide(report)
    if report == :leaving, do: terminate(self(), nobody)
    send(drainer, {:visited, self(), report})
    connection
  end

  defp decide({:idle, milliseconds, socket}) when milliseconds >= @idle do
    # An HTTP/2 connection has more to say before its end.
    if socket, do: Connection.shut_down(socket)
    :leaving
  end

  defp decide({:idle, milliseconds, _socket}), do: {:idle, milliseconds}
  defp decide(report), do: report

  @doc false
  def say_goodbye(connection, server) do
    :ok = server.close_websocket(connection)
    connection
  end

  defp terminate(pid, nobody), do: system_message(pid, nobody, {:terminate, :shutdown})

  defp system_message(pid, nobody, request),
    do: send(pid, {:system, {nobody, make_ref()}, request})

  defp left(:infinity, _now), do: :infinity
  defp left(deadline, now), do: deadline - now

  defp now, do: System.monotonic_time(:millisecond)
end
