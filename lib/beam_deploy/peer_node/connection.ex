defmodule BeamDeploy.PeerNode.Connection do
  @moduledoc false
  # Responsible for: what can be learnt of and done to a connection's socket, plain or TLS, whichever server it
  # belongs to.
  # Not for: when.

  # struct tcp_info of Linux: `tcpi_last_data_recv`, the milliseconds since the last byte came, one that no
  # process has read included.
  @tcp 6
  @tcp_info 11
  @last_data_received 52

  # RFC 6455: a final frame of type close, unmasked, with the code "service restart". Clients reconnect on it, while
  # 1000, "normal closure", tells phoenix.js and others that nobody wants them back.
  @close_frame <<0x88, 2, 1012::16>>

  # RFC 9113, 6.8: error-free, and with the highest stream number: no new requests, but all that were sent are served.
  @goaway <<8::24, 7, 0, 0::32, 0x7FFFFFFF::32, 0::32>>

  @type socket :: :inet.socket() | :ssl.sslsocket()

  @doc "Whether a term is a socket."
  @spec socket?(term()) :: boolean()
  def socket?(term) when is_port(term), do: true
  def socket?({:"$inet", _module, _socket}), do: true
  def socket?(term) when is_tuple(term) and elem(term, 0) == :sslsocket, do: true
  def socket?(_term), do: false

  @doc "How long nothing has come, in milliseconds; the second argument where the system does not say."
  @spec idle_for(socket(), non_neg_integer()) :: non_neg_integer()
  def idle_for(socket, otherwise) do
    case get_raw(socket, {:raw, @tcp, @tcp_info, @last_data_received + 4}) do
      {:ok, [{:raw, @tcp, @tcp_info, <<_::binary-size(52), idle::32-native>>}]} -> idle
      _unknown -> otherwise
    end
  end

  defp get_raw(socket, option) do
    case :os.type() do
      {:unix, :linux} -> getopts(socket, [option])
      _other -> {:error, :enotsup}
    end
  end

  defp getopts(socket, options) when elem(socket, 0) == :sslsocket,
    do: :ssl.getopts(socket, options)

  defp getopts(socket, options), do: :inet.getopts(socket, options)

  @doc """
  Ends a connection, while the socket stays its owner's, who is told as if the other end had closed. Cowboy would
  otherwise wait a second for that. An error means that the other end is gone already.
  """
  @spec shut_down(socket()) :: :ok
  def shut_down(socket) do
    _ =
      if is_port(socket),
        do: :gen_tcp.shutdown(socket, :read_write),
        else: shut_down_other(socket)

    :ok
  end

  defp shut_down_other(socket) when elem(socket, 0) == :sslsocket,
    do: :ssl.shutdown(socket, :read_write)

  defp shut_down_other(socket), do: :gen_tcp.shutdown(socket, :read_write)

  @doc "Asks the other end of a WebSocket to close it."
  @spec close_websocket(socket()) :: :ok
  def close_websocket(socket), do: send_bytes(socket, @close_frame)

  @doc "Asks the other end of an HTTP/2 connection for no more requests."
  @spec go_away(socket()) :: :ok
  def go_away(socket), do: send_bytes(socket, @goaway)

  # An error means that the other end is gone already, which the process will be told.
  defp send_bytes(socket, bytes) do
    _ = if is_port(socket), do: :gen_tcp.send(socket, bytes), else: send_other(socket, bytes)
    :ok
  end

  defp send_other(socket, bytes) when elem(socket, 0) == :sslsocket, do: :ssl.send(socket, bytes)
  defp send_other(socket, bytes), do: :gen_tcp.send(socket, bytes)

  @doc "The processes linked to this one but for the one that started it: those of requests in progress, as a rule."
  @spec workers() :: [pid()]
  def workers do
    {:links, links} = Process.info(self(), :links)
    ancestors = Process.get(:"$ancestors", [])
    for pid <- links, is_pid(pid), pid not in ancestors, do: pid
  end
end
