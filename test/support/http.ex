defmodule BeamDeploy.Test.Http do
  @moduledoc false
  # One request, one connection, and nothing tried again.

  alias BeamDeploy.Test.Wait

  # Below those that the system gives to whoever asks for any port: one of these stays free until its release has booted.
  @ports 10_000..29_999

  @doc "A port that nobody listens on."
  def free_port do
    # Other test runs on this machine begin elsewhere.
    number =
      String.to_integer(System.pid()) * 997 + System.unique_integer([:positive, :monotonic])

    port = Enum.at(@ports, rem(number, Range.size(@ports)))

    case :gen_tcp.listen(port, []) do
      {:ok, socket} ->
        :ok = :gen_tcp.close(socket)
        port

      {:error, :eaddrinuse} ->
        free_port()
    end
  end

  def get(port, path, timeout \\ Wait.patience()) do
    with {:ok, socket} <- connect(port) do
      try do
        request(socket, path, timeout)
      after
        :gen_tcp.close(socket)
      end
    end
  end

  @doc "A connection for `request/4`. It is there as soon as it is in the queue of whoever is to accept it."
  def connect!(port) do
    {:ok, socket} = connect(port)
    socket
  end

  defp connect(port) do
    options = [:binary, active: false, packet: :http_bin]
    :gen_tcp.connect({127, 0, 0, 1}, port, options, Wait.patience())
  end

  @doc "A request on an open connection (`packet: :http_bin`), which stays open."
  def request(socket, path, timeout \\ Wait.patience(), headers \\ "") do
    with :ok <-
           transport(socket).send(
             socket,
             "GET #{path} HTTP/1.1\r\nhost: localhost\r\n#{headers}\r\n"
           ),
         {:ok, {:http_response, _version, status, _reason}} <-
           transport(socket).recv(socket, 0, timeout),
         {:ok, headers} <- headers(socket, %{}, timeout),
         {:ok, body} <- body(socket, headers, timeout) do
      {:ok, %{status: status, headers: headers, body: body}}
    end
  end

  @doc "The module of an open connection's functions: gen_tcp's, or ssl's for one of TLS."
  def transport(socket) when is_port(socket), do: :gen_tcp
  def transport(_tls), do: :ssl

  defp setopts(socket, options) when is_port(socket), do: :inet.setopts(socket, options)
  defp setopts(socket, options), do: :ssl.setopts(socket, options)

  defp headers(socket, headers, timeout) do
    case transport(socket).recv(socket, 0, timeout) do
      {:ok, {:http_header, _, name, _, value}} ->
        headers(
          socket,
          Map.put(headers, name |> to_string() |> String.downcase(), value),
          timeout
        )

      {:ok, :http_eoh} ->
        {:ok, headers}

      other ->
        other
    end
  end

  defp body(_socket, %{"content-length" => "0"}, _timeout), do: {:ok, ""}

  defp body(socket, %{"content-length" => length}, timeout) do
    :ok = setopts(socket, packet: :raw)
    result = transport(socket).recv(socket, String.to_integer(length), timeout)
    :ok = setopts(socket, packet: :http_bin)
    result
  end
end
