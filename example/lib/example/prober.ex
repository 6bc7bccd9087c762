defmodule Example.Prober do
  @moduledoc """
  Asks this host's own port at a steady rate, with a connection for each request, and remembers for each second which
  release answered how often, and what failed. Lives on the parent, so it sees all of a swap.
  """
  use GenServer

  @seconds 90
  @timeout 5_000

  def start_link(_), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc """
  The whole seconds so far, newest last, and the totals. A second is
  `%{at: unix_seconds, answered: %{version => count}, failed: count, slowest: microseconds}`.
  """
  def snapshot, do: GenServer.call(__MODULE__, :snapshot)

  @doc "How many requests failed since the start."
  def failed, do: GenServer.call(__MODULE__, :failed)

  @impl true
  def init(nil) do
    port = Application.fetch_env!(:example, :port)
    rate = String.to_integer(System.get_env("DEMO_RATE", "50"))
    {:ok, _timer} = :timer.send_interval(div(1_000, rate), :ask)
    {:ok, %{port: port, seconds: %{}, requests: 0, failed: 0, errors: %{}}}
  end

  @impl true
  def handle_call(:failed, _from, state), do: {:reply, state.failed, state}

  def handle_call(:snapshot, _from, state) do
    now = System.system_time(:second)
    seconds = for at <- (now - @seconds)..(now - 1), do: Map.get(state.seconds, at, empty(at))

    {:reply, Map.merge(Map.take(state, [:requests, :failed, :errors]), %{seconds: seconds}),
     state}
  end

  @impl true
  def handle_info(:ask, state) do
    server = self()
    {:ok, _pid} = Task.Supervisor.start_child(Example.Tasks, fn -> ask(server, state.port) end)
    {:noreply, state}
  end

  # Nobody serves before the first peer does.
  def handle_info({:answer, {:error, _reason}, _time}, %{requests: 0} = state),
    do: {:noreply, state}

  def handle_info({:answer, result, time}, state) do
    at = System.system_time(:second)
    second = state.seconds |> Map.get(at, empty(at)) |> count(result, time)

    seconds =
      state.seconds |> Map.put(at, second) |> Map.reject(fn {key, _} -> key < at - @seconds end)

    state = %{state | seconds: seconds, requests: state.requests + 1}

    case result do
      {:ok, _version} ->
        {:noreply, state}

      {:error, reason} ->
        errors = Map.update(state.errors, reason, 1, &(&1 + 1))
        {:noreply, %{state | failed: state.failed + 1, errors: errors}}
    end
  end

  defp empty(at), do: %{at: at, answered: %{}, failed: 0, slowest: 0}

  defp count(second, {:ok, version}, time) do
    %{
      second
      | answered: Map.update(second.answered, version, 1, &(&1 + 1)),
        slowest: max(second.slowest, time)
    }
  end

  defp count(second, {:error, _reason}, _time), do: %{second | failed: second.failed + 1}

  defp ask(server, port) do
    {time, result} = :timer.tc(fn -> request(port) end)
    send(server, {:answer, result, time})
  end

  defp request(port) do
    with {:ok, socket} <-
           :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false], @timeout) do
      result = exchange(socket)
      :ok = :gen_tcp.close(socket)
      result
    end
  end

  defp exchange(socket) do
    with :ok <-
           :gen_tcp.send(
             socket,
             "GET /probe HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
           ),
         {:ok, answer} <- read(socket, ""),
         do: version(answer)
  end

  defp read(socket, sofar) do
    case :gen_tcp.recv(socket, 0, @timeout) do
      {:ok, data} -> read(socket, sofar <> data)
      {:error, :closed} -> {:ok, sofar}
      {:error, reason} -> {:error, reason}
    end
  end

  # The body is all that comes after the head, and it ends with a mark: half an answer is a failure.
  defp version("HTTP/1.1 200" <> _ = answer) do
    case Regex.run(~r/\r\n\r\nrelease (\S+) end$/, answer, capture: :all_but_first) do
      [version] -> {:ok, version}
      nil -> {:error, :incomplete}
    end
  end

  defp version(""), do: {:error, :closed}
  defp version(_other), do: {:error, :status}
end
