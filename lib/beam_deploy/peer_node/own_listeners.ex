defmodule BeamDeploy.PeerNode.OwnListeners do
  @moduledoc false
  # Responsible for: connections that came in through a listener which the application opened with `BeamDeploy.listen/2`,
  # and waiting for their end. Their processes and their protocol are the application's, so this is all that can be known:
  # a socket of this VM that is connected, and whose own end is the listener's address.
  # Not for: ending them.

  # A look costs a microsecond or two for each socket of the VM.
  @look 100

  @doc "Remembers a listening socket."
  @spec remember(:gen_tcp.socket()) :: :ok
  def remember(socket) do
    with {:ok, name} <- :inet.sockname(socket),
         do: :persistent_term.put({__MODULE__, end_of(name)}, true)

    :ok
  end

  @doc "Returns how many connections are left: none, or those that have not ended by the deadline (monotonic ms)."
  @spec await_end(integer() | :infinity) :: non_neg_integer()
  def await_end(deadline) do
    case remembered() do
      [] -> 0
      listeners -> await_end(MapSet.new(listeners), deadline)
    end
  end

  defp await_end(listeners, deadline) do
    left = count(listeners)

    if left == 0 or now() >= deadline do
      left
    else
      Process.sleep(@look)
      await_end(listeners, deadline)
    end
  end

  defp remembered, do: for({{__MODULE__, name}, true} <- :persistent_term.get(), do: name)

  defp count(listeners) do
    Enum.count(Port.list(), fn port ->
      with {:name, ~c"tcp_inet"} <- Port.info(port, :name),
           {:ok, name} <- :inet.sockname(port),
           {:ok, _client} <- :inet.peername(port) do
        MapSet.member?(listeners, end_of(name))
      else
        _other -> false
      end
    end)
  end

  # A connection has one of the listener's addresses, which may be all that there are.
  defp end_of({ip, port}) when is_tuple(ip), do: port
  defp end_of({:local, path}), do: {:local, path}
  defp end_of(other), do: other

  defp now, do: System.monotonic_time(:millisecond)
end
