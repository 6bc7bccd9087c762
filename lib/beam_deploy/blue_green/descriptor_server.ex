defmodule BeamDeploy.BlueGreen.DescriptorServer do
  @moduledoc false
  # Responsible for: handing the parent's descriptors to its peers, over a unix socket that only this user can reach.
  # Not for: opening or steering listening sockets; `BeamDeploy.BlueGreen.Listener` does.

  use Task, restart: :permanent

  alias BeamDeploy.BlueGreen.Listener
  alias BeamDeploy.Native

  @timeout 5_000
  @backlog 16
  @largest_request 65_536
  # SOL_SOCKET and SO_PEERCRED of Linux: the answer is pid, uid and gid.
  @peer_credentials {1, 17}

  def start_link(path), do: Task.start_link(__MODULE__, :listen, [path])

  @doc false
  def listen(path) do
    # What an earlier parent left behind: the name would be taken.
    _ = File.rm(path)
    {:ok, socket} = :socket.open(:local, :stream, :default)
    :ok = :socket.bind(socket, %{family: :local, path: path})
    :ok = File.chmod(path, 0o600)
    :ok = :socket.listen(socket, @backlog)
    accept(socket, File.stat!(path).uid)
  end

  # Each connection in a process of its own: whatever comes through it ends that process at worst.
  defp accept(socket, owner) do
    {:ok, connection} = :socket.accept(socket)

    {:ok, _pid} =
      Task.Supervisor.start_child(BeamDeploy.TaskSupervisor, __MODULE__, :serve, [
        connection,
        owner
      ])

    accept(socket, owner)
  end

  @doc false
  def serve(connection, owner) do
    with :ok <- check_owner(connection, owner),
         {:ok, request} <- receive_request(connection),
         do: serve_request(connection, request)
  after
    :socket.close(connection)
  end

  # The mode of the socket keeps other users out already; the kernel's word for who is there costs nothing.
  defp check_owner(connection, owner) do
    case {:os.type(), :socket.getopt_native(connection, @peer_credentials, 12)} do
      {{:unix, :linux}, {:ok, <<_pid::32-native, ^owner::32-native, _gid::32>>}} -> :ok
      {{:unix, :linux}, other} -> {:error, other}
      _elsewhere -> :ok
    end
  end

  defp receive_request(connection) do
    with {:ok, <<size::32>>} when size <= @largest_request <-
           :socket.recv(connection, 4, @timeout),
         {:ok, binary} <- :socket.recv(connection, size, @timeout),
         do: {:ok, :erlang.binary_to_term(binary, [:safe])}
  end

  defp serve_request(connection, :output), do: send_answer(connection, {:ok, [1, 2]})

  # A duplicate: the socket may be closed at any moment, and its number be another's then.
  defp serve_request(connection, {:listen, side, address}) do
    answer = Listener.descriptor(side, address)

    try do
      send_answer(connection, answer)
    after
      with {:ok, numbers} <- answer, do: Enum.each(numbers, &(:ok = Native.close_descriptor(&1)))
    end
  end

  defp send_answer(connection, {:ok, descriptors}) do
    rights = for number <- descriptors, into: <<>>, do: <<number::32-native>>
    send_message(connection, :ok, [%{level: :socket, type: :rights, data: rights}])
  end

  defp send_answer(connection, other), do: send_message(connection, other, [])

  defp send_message(connection, term, control) do
    message = %{iov: [:erlang.term_to_binary(term)], ctrl: control}
    :socket.sendmsg(connection, message, [], @timeout)
  end
end
