defmodule BeamDeploy.Integration.Ranch do
  @moduledoc false
  # Responsible for: the connections of Cowboy, under Ranch, while they drain.
  # Not for: Cowboy's options, its answers (`BeamDeploy.Integration.CowboyStream`), or when something is done to a
  # connection.
  #
  # A connection is a special process (see `:sys`); requests run in processes linked to it. Told to terminate, Cowboy
  # finishes the request it is answering, and on HTTP/2 says GOAWAY and finishes all.

  alias BeamDeploy.PeerNode.Connection

  @compile {:no_warn_undefined, :ranch}
  @protocols [:cowboy_clear, :cowboy_tls]

  @doc "The names of all of Cowboy's listeners on this node."
  @spec servers() :: [term()]
  def servers do
    if Process.whereis(:ranch_sup),
      do: for({ref, info} <- :ranch.info(), protocol(info) in @protocols, do: ref),
      else: []
  end

  # A list in Ranch 1, a map in Ranch 2.
  defp protocol(info) when is_map(info), do: info[:protocol]
  defp protocol(info), do: :proplists.get_value(:protocol, info)

  @doc "Their connections' processes."
  @spec connections([term()]) :: [pid()]
  def connections(servers), do: Enum.flat_map(servers, &procs/1)

  defp procs(ref) do
    :ranch.procs(ref, :connections)
  catch
    # It was stopped meanwhile, and its connections with it.
    _kind, _reason -> []
  end

  @doc "What a connection is doing, said by itself."
  @spec look(term(), non_neg_integer()) :: {BeamDeploy.PeerNode.Drain.observation(), term()}
  def look({websocket, {_handler, _handler_state} = handler, parser} = connection, _known_idle)
      when elem(websocket, 0) == :state and is_tuple(parser),
      do: {{:websocket, websocket(handler)}, connection}

  def look({websocket, _handler, parser} = connection, _known_idle)
      when elem(websocket, 0) == :state and is_tuple(parser),
      do: {{:websocket, :plain}, connection}

  def look(connection, known_idle) do
    fields = fields(connection)

    cond do
      Enum.any?(fields, &http2?/1) ->
        {:leaving, connection}

      Connection.workers() != [] ->
        {:busy, connection}

      true ->
        socket = Enum.find(fields, &Connection.socket?/1)
        {{:idle, Connection.idle_for(socket, known_idle), socket}, connection}
    end
  end

  # The record of the connection, alone or with its buffer.
  defp fields({state, buffer}) when is_binary(buffer), do: Tuple.to_list(state)
  defp fields(state), do: Tuple.to_list(state)

  defp http2?(field),
    do: is_tuple(field) and tuple_size(field) > 0 and elem(field, 0) == :http2_machine

  defp websocket({handler, _state}) do
    if is_atom(handler) and function_exported?(handler, :__channel__, 1),
      do: :phoenix,
      else: :plain
  end

  @doc "Asks a WebSocket's client to close, in the connection's process."
  @spec close_websocket(term()) :: :ok
  def close_websocket({state, _handler, _parser}) do
    state |> Tuple.to_list() |> Enum.find(&Connection.socket?/1) |> Connection.close_websocket()
  end

  @doc "A process of Cowboy always answers."
  @spec abandon_unused(pid(), non_neg_integer(), non_neg_integer()) :: :in_use
  def abandon_unused(_pid, _idle, _waited), do: :in_use
end
