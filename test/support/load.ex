defmodule BeamDeploy.Test.Load do
  @moduledoc false
  # Requests without end from a number of clients, each on a connection of its own or all of a client on one that is
  # kept. Nothing is tried again; a connection that the server has closed by the time of the next request is opened anew.

  alias BeamDeploy.Test.{Http, Wait}

  @rest 5
  @options [:binary, active: false, packet: :http_bin, nodelay: true]

  @doc "Starts clients of a kind (`:connect` or `:keepalive`); the address is a port of loopback, `{host, port}`, or
  `{:tls, port}` for a port of loopback that speaks TLS."
  def start(kind, address, clients \\ 4) do
    stop = :atomics.new(1, [])

    tasks =
      for _client <- 1..clients do
        Task.async(fn -> run(kind, host(address), stop, nil, %{requests: 0, failures: []}) end)
      end

    {stop, tasks}
  end

  @doc "Ends the clients after their current requests: how many those were, and how some failed."
  def stop({stop, tasks}) do
    :atomics.put(stop, 1, 1)

    tasks
    |> Task.await_many(Wait.patience())
    |> Enum.reduce(%{requests: 0, failures: []}, fn one, all ->
      %{requests: one.requests + all.requests, failures: one.failures ++ all.failures}
    end)
  end

  defp host(port) when is_integer(port), do: {{127, 0, 0, 1}, port}
  defp host(address), do: address

  defp run(kind, address, stop, connection, result) do
    if :atomics.get(stop, 1) == 1 do
      close(connection)
      result
    else
      {outcome, connection} = request(kind, address, connection)
      # A server that refuses is not asked thousands of times a second.
      Process.sleep(@rest)
      run(kind, address, stop, connection, count(result, outcome))
    end
  end

  defp count(result, :ok), do: %{result | requests: result.requests + 1}

  defp count(result, failure),
    do: %{result | requests: result.requests + 1, failures: [failure | result.failures]}

  defp request(kind, address, connection) do
    with {:ok, connection} <- open(connection, address),
         {:ok, %{status: 200} = response} <- Http.request(connection, "/version") do
      {:ok, keep(kind, connection, response)}
    else
      failure -> {failure, close(connection)}
    end
  end

  # Whose certificate it is does not matter here.
  defp open(nil, {:tls, port}),
    do: :ssl.connect({127, 0, 0, 1}, port, [{:verify, :verify_none} | @options], Wait.patience())

  defp open(nil, {host, port}), do: :gen_tcp.connect(host, port, @options, Wait.patience())

  defp open(connection, address) do
    case Http.transport(connection).recv(connection, 0, 0) do
      {:error, :timeout} -> {:ok, connection}
      {:error, :closed} -> open(close(connection), address)
      unexpected -> unexpected
    end
  end

  defp keep(:keepalive, connection, %{headers: headers}),
    do: if(headers["connection"] == "close", do: close(connection), else: connection)

  defp keep(:connect, connection, _response), do: close(connection)

  defp close(nil), do: nil

  defp close(connection) do
    :ok = Http.transport(connection).close(connection)
    nil
  end
end
