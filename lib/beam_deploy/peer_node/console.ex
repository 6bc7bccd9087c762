defmodule BeamDeploy.PeerNode.Console do
  @moduledoc false
  # Responsible for: standard input and output of a peer: it takes them over from the `:peer` module.
  # Not for: what is printed, or where the parent wants it.
  #
  # `:peer` speaks with its origin through descriptors 0 and 1, where every io request of the node makes a round trip
  # to the parent, and any byte of the form 11xxxx11 that native code prints (the first of "é") is taken for part of
  # the protocol and breaks it. So, before the first application starts, this process becomes `user`, and descriptor 1
  # becomes ordinary output. The connection to the parent stays for what it is best at: standard input ends when
  # the parent ends, however it does, and with it the peer.
  #
  # It is no child of a supervisor: it must be there before the applications and outlive them.

  alias BeamDeploy.Native
  alias BeamDeploy.PeerNode.Descriptors

  @doc "Makes this process `user`, with what the parent gave as standard error as output for now."
  @spec take_over() :: :ok
  def take_over do
    {:ok, _pid} = :proc_lib.start(__MODULE__, :init, [Process.whereis(:user)])

    # In OTP 25 to 28 this process ignores a shutdown for a second; while suspended, `:sys` obeys for it.
    if supervision = Process.whereis(:peer_supervision), do: :ok = :sys.suspend(supervision)
    :ok
  end

  @doc "Prints to the parent's own standard output and error from now on."
  @spec attach() :: :ok | {:error, term()}
  def attach do
    with {:ok, [stdout, stderr]} <- Descriptors.fetch(:output),
         :ok <- Native.redirect(:stdout, stdout),
         :ok <- Native.redirect(:stderr, stderr) do
      Enum.each([stdout, stderr], &Native.close_descriptor/1)
    end
  end

  @doc "Returns once the node has run its whole boot script."
  @spec await_started() :: :ok
  def await_started, do: request(:await_started)

  defp request(request) do
    monitor = Process.monitor(:user)
    send(:user, {request, self(), monitor})

    receive do
      {^monitor, reply} ->
        Process.demonitor(monitor, [:flush])
        reply

      {:DOWN, ^monitor, :process, _pid, reason} ->
        exit({reason, {__MODULE__, request}})
    end
  end

  @doc false
  def init(peer_user) do
    Process.flag(:trap_exit, true)
    Process.group_leader(self(), self())
    port = take_port(peer_user)
    :ok = Native.redirect(:stdout, 2)

    Process.unregister(:user)
    Process.register(self(), :user)
    move_group_leader(peer_user)

    :init.notify_when_started(self())
    # The last child of the kernel supervisor but for `user` and what `user` needs.
    kernel = Process.monitor(:kernel_refc)
    :proc_lib.init_ack({:ok, self()})
    loop(%{port: port, kernel: kernel, started?: false, waiting: []})
  end

  # Told that the node is started, `:peer` reports so to its origin, which will from then on take the peer's end for
  # an ordinary one. It is then held still for good: all it could do is print its protocol to the real output. Its
  # port goes on serving here.
  defp take_port(peer_user) do
    {:links, links} = Process.info(peer_user, :links)
    [port] = Enum.filter(links, &is_port/1)
    send(peer_user, {:init, :started})

    await(fn ->
      Process.info(peer_user, [:message_queue_len, :status]) == [
        message_queue_len: 0,
        status: :waiting
      ]
    end)

    true = :erlang.suspend_process(peer_user)
    # What is on its way must not end up in the new output.
    await(fn -> Port.info(port, :queue_size) == {:queue_size, 0} end)
    true = Port.connect(port, self())
    port
  end

  defp await(condition) do
    unless condition.() do
      Process.sleep(1)
      await(condition)
    end
  end

  defp move_group_leader(from) do
    for pid <- Process.list(),
        Process.info(pid, :group_leader) == {:group_leader, from},
        do: Process.group_leader(pid, self())

    :ok
  end

  defp loop(%{port: port, kernel: kernel} = state) do
    receive do
      {:io_request, from, reply_as, request} when is_pid(from) ->
        send(from, {:io_reply, reply_as, handle_io(request, port)})
        loop(state)

      {:init, :started} ->
        Enum.each(state.waiting, &reply_started/1)
        loop(%{state | started?: true, waiting: []})

      {:await_started, from, tag} when state.started? ->
        reply_started({from, tag})
        loop(state)

      {:await_started, from, tag} ->
        loop(%{state | waiting: [{from, tag} | state.waiting]})

      {^port, :eof} ->
        halt_without_parent()

      # Closed, as it is by a halt that waits until all is written: another one that does not would cut it short.
      {:EXIT, ^port, _reason} ->
        :erlang.halt(1)

      # Every application but kernel has stopped. Up to OTP 28 the kernel would now sleep for a second, to let a
      # `user` that it knows finish printing; this one prints before it answers.
      {:DOWN, ^kernel, :process, _pid, :shutdown} ->
        :erlang.halt(0)

      # Anything else is either `:peer`'s protocol, which nobody uses any more, or the exit of a linked process.
      _other ->
        loop(state)
    end
  end

  defp reply_started({from, tag}), do: send(from, {tag, :ok})

  defp halt_without_parent, do: :erlang.halt(1, flush: false)

  # The I/O protocol, for a device that can only print.
  defp handle_io({:put_chars, encoding, characters}, port), do: print(port, characters, encoding)

  defp handle_io({:put_chars, encoding, module, function, arguments}, port) do
    print(port, apply(module, function, arguments), encoding)
  catch
    _kind, _reason -> {:error, {:put_chars, encoding, :bad_call}}
  end

  defp handle_io({:put_chars, characters}, port), do: print(port, characters, :latin1)
  defp handle_io({:requests, requests}, port), do: handle_all(requests, port, :ok)
  defp handle_io({:setopts, _options}, _port), do: :ok
  defp handle_io(:getopts, _port), do: [binary: true, encoding: :unicode]
  defp handle_io({:get_geometry, _what}, _port), do: {:error, :enotsup}

  defp handle_io(request, _port)
       when elem(request, 0) in [:get_chars, :get_line, :get_until, :get_password],
       do: :eof

  defp handle_io(_request, _port), do: {:error, :request}

  defp handle_all([], _port, result), do: result
  defp handle_all([request | rest], port, _ok), do: with_ok(handle_io(request, port), rest, port)

  defp with_ok({:error, _reason} = error, _rest, _port), do: error
  defp with_ok(result, rest, port), do: handle_all(rest, port, result)

  defp print(port, characters, encoding) do
    case :unicode.characters_to_binary(characters, encoding, :unicode) do
      bytes when is_binary(bytes) ->
        true = Port.command(port, bytes)
        # The command may still be on its way to the port. A question is answered behind it.
        _size = Port.info(port, :queue_size)
        :ok

      {_error_or_incomplete, _encoded, _rest} ->
        {:error, {:put_chars, encoding, :no_translation}}
    end
  rescue
    ArgumentError -> {:error, {:put_chars, encoding, :bad_characters}}
  end
end
