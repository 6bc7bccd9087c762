defmodule BeamDeploy.PeerNode.Descriptors do
  @moduledoc false
  # Responsible for: the peer's end of the private socket through which the parent hands over descriptors.
  # Not for: what they are used for.

  alias BeamDeploy.{Native, PeerNode}

  @timeout 5_000
  # Room for the control message of two descriptors, however a platform aligns it.
  @control_size 256

  @doc "Asks the parent for descriptors: their numbers here, or what it answered instead."
  @spec fetch(term()) :: {:ok, [non_neg_integer()]} | {:error, term()} | :overlap
  def fetch(request) do
    with {:ok, socket} <- :socket.open(:local, :stream, :default) do
      try do
        exchange(socket, request)
      after
        :socket.close(socket)
      end
    end
  end

  defp exchange(socket, request) do
    address = %{family: :local, path: PeerNode.identity().socket}

    with :ok <- :socket.connect(socket, address, @timeout),
         :ok <- :socket.send(socket, frame(request), @timeout),
         {:ok, message} <- :socket.recvmsg(socket, 0, @control_size, [], @timeout) do
      answer(message)
    end
  end

  defp frame(term) do
    binary = :erlang.term_to_binary(term)
    <<byte_size(binary)::32, binary::binary>>
  end

  defp answer(%{iov: iov, ctrl: control}) do
    case :erlang.binary_to_term(IO.iodata_to_binary(iov)) do
      :ok -> {:ok, control |> Enum.flat_map(&descriptors/1) |> Enum.map(&keep_private/1)}
      other -> other
    end
  end

  defp descriptors(%{level: :socket, type: :rights, data: data}),
    do: for(<<number::32-native <- data>>, do: number)

  defp keep_private(number) do
    :ok = Native.close_on_exec(number)
    number
  end
end
