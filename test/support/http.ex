defmodule BeamDeploy.Test.Http do
  @moduledoc false
  # One request, one connection, and nothing tried again.

  @doc "A port of loopback that nobody listens on."
  def free_port do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :ok = :gen_tcp.close(socket)
    port
  end

  def get(port, path, timeout \\ 30_000) do
    with {:ok, socket} <-
           :gen_tcp.connect(
             {127, 0, 0, 1},
             port,
             [:binary, active: false, packet: :http_bin],
             5_000
           ) do
      try do
        request(socket, path, timeout)
      after
        :gen_tcp.close(socket)
      end
    end
  end

  @doc "A request on an open connection (`packet: :http_bin`), which stays open."
  def request(socket, path, timeout \\ 30_000, headers \\ "") do
    with :ok <-
           :gen_tcp.send(socket, "GET #{path} HTTP/1.1\r\nhost: localhost\r\n#{headers}\r\n"),
         {:ok, {:http_response, _version, status, _reason}} <- :gen_tcp.recv(socket, 0, timeout),
         {:ok, headers} <- headers(socket, %{}, timeout),
         {:ok, body} <- body(socket, headers, timeout) do
      {:ok, %{status: status, headers: headers, body: body}}
    end
  end

  defp headers(socket, headers, timeout) do
    case :gen_tcp.recv(socket, 0, timeout) do
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
    :ok = :inet.setopts(socket, packet: :raw)
    result = :gen_tcp.recv(socket, String.to_integer(length), timeout)
    :ok = :inet.setopts(socket, packet: :http_bin)
    result
  end
end
