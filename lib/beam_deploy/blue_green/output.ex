defmodule BeamDeploy.BlueGreen.Output do
  @moduledoc false
  # Responsible for: what a peer prints that the parent has to print for it, with the last lines kept for the error if the boot
  # fails: while it boots, a file that its descriptors 1 and 2 lead to; as long as it lives, the pipe that it was started with
  # as standard output.
  # Not for: what a peer that serves prints itself: that goes to the parent's descriptors.
  #
  # `:peer` speaks with the peer through that pipe until the peer's console has taken over. Programs that the peer starts may
  # have it as their standard output even then, since the VM's helper for ports was forked before. Any byte of the form
  # 11xxxx11 (the first of "é") `:peer` would take for its protocol; it would crash, and the peer with it. So this process
  # owns the port: for as long as the protocol is spoken it hands on what is part of it, all else is text.

  use GenServer, restart: :temporary

  @interval 100
  @kept_lines 40
  # What is longer, or never ends, is printed in parts.
  @longest_line 65_536

  @doc "Makes the file anew; it is gone when the peer serves, or this process ends."
  def start_link(path), do: GenServer.start_link(__MODULE__, path)

  @doc "An I/O device that appends to the file."
  @spec device(pid()) :: pid()
  def device(output), do: GenServer.call(output, :device)

  @doc "Takes the port of a `:peer` control process, and lets the peer begin."
  @spec own(pid(), port(), pid()) :: :ok
  def own(output, port, control), do: GenServer.call(output, {:own, port, control})

  @doc "The last lines printed."
  @spec tail(pid()) :: String.t()
  def tail(output), do: GenServer.call(output, :tail)

  @doc "The peer prints elsewhere from now on: nothing more comes to the file."
  @spec finish_file(pid()) :: :ok
  def finish_file(output) do
    GenServer.call(output, :finish_file)
  catch
    # The peer has ended meanwhile, and all of it was cleaned up.
    :exit, {reason, _call} when reason in [:noproc, :normal, :shutdown] -> :ok
  end

  @impl true
  def init(path) do
    Process.flag(:trap_exit, true)
    _ = File.rm(path)
    :ok = File.touch(path)
    :ok = File.chmod(path, 0o600)
    {:ok, device} = File.open(path, [:append, :utf8])
    {:ok, reader} = :file.open(path, [:read, :raw, :binary])
    schedule()

    {:ok,
     %{
       path: path,
       device: device,
       reader: reader,
       port: nil,
       control: nil,
       protocol?: true,
       pending: %{file: "", pipe: ""},
       lines: []
     }}
  end

  @impl true
  def handle_call(:device, _from, state), do: {:reply, state.device, state}

  def handle_call({:own, port, control}, _from, state) do
    take(port)
    {:reply, :ok, %{state | port: port, control: control}}
  end

  def handle_call(:tail, _from, state) do
    state = forward(state)
    pending = for {_source, part} <- state.pending, part != "", do: printable(part)
    {:reply, state.lines |> Enum.reverse(pending) |> Enum.join("\n") |> String.trim(), state}
  end

  def handle_call(:finish_file, _from, state), do: {:reply, :ok, close_file(state)}

  @impl true
  def handle_info(:forward, %{reader: nil} = state), do: {:noreply, state}

  def handle_info(:forward, state) do
    schedule()
    {:noreply, forward(state)}
  end

  def handle_info({port, {:data, bytes}}, %{port: port} = state) do
    {text, state} = hand_on(bytes, state, "")
    # What was printed before that comes first.
    {:noreply, text |> add(:pipe, forward(state))}
  end

  # `:peer` ends at that, and closes the port.
  def handle_info({port, {:exit_status, _status}} = message, %{port: port} = state) do
    send(state.control, message)
    {:noreply, state}
  end

  # `:peer`, to which it is linked as well, ends at that. What was printed last may still be asked for.
  def handle_info({:EXIT, port, _reason}, state) when is_port(port), do: {:noreply, state}
  def handle_info({:EXIT, _pid, reason}, state), do: {:stop, reason, state}

  @impl true
  def terminate(_reason, state) do
    state |> close_file() |> flush(:pipe)
    :ok
  end

  defp schedule, do: Process.send_after(self(), :forward, @interval)

  defp take(port) do
    Port.connect(port, self())
    # It waits for that.
    Port.command(port, "\n")
  rescue
    # The peer has ended at once.
    ArgumentError -> true
  end

  # Byte by byte, for text may follow the last of the protocol at once. There are a few hundred at most.
  defp hand_on(<<3::2, _nibble::4, 3::2, rest::binary>> = bytes, %{protocol?: true} = state, text) do
    send(state.control, {state.port, {:data, binary_part(bytes, 0, 1)}})
    hand_on(rest, %{state | protocol?: booting?(state.control)}, text)
  end

  defp hand_on(<<byte, rest::binary>>, %{protocol?: true} = state, text),
    do: hand_on(rest, state, <<text::binary, byte>>)

  defp hand_on(rest, state, text), do: {text <> rest, state}

  # Told by the peer's console that the node is started, `:peer` has heard the last of it.
  defp booting?(control) do
    :peer.get_state(control) == :booting
  catch
    :exit, _ended -> false
  end

  defp close_file(%{reader: nil} = state), do: state

  defp close_file(state) do
    state = state |> forward() |> flush(:file)
    :ok = :file.close(state.reader)
    _ = File.rm(state.path)
    %{state | reader: nil, protocol?: false}
  end

  defp forward(%{reader: nil} = state), do: state

  defp forward(state) do
    case :file.read(state.reader, 1_048_576) do
      {:ok, bytes} -> bytes |> add(:file, state) |> forward()
      :eof -> state
    end
  end

  # Whole lines only: two peers and the parent print at the same time.
  defp add(bytes, source, state) do
    {lines, [pending]} = (state.pending[source] <> bytes) |> String.split("\n") |> Enum.split(-1)

    state = emit(lines, %{state | pending: %{state.pending | source => pending}})
    if byte_size(pending) > @longest_line, do: flush(state, source), else: state
  end

  defp flush(state, source) do
    case state.pending[source] do
      "" -> state
      pending -> emit([pending], %{state | pending: %{state.pending | source => ""}})
    end
  end

  defp emit([], state), do: state

  defp emit(lines, state) do
    lines = Enum.map(lines, &printable/1)
    # The parent's own output may be gone, which is no reason to end a peer that serves.
    _ = :io.request(:user, {:put_chars, :unicode, Enum.map(lines, &[&1, ?\n])})

    %{
      state
      | lines: lines |> Enum.reverse() |> Enum.concat(state.lines) |> Enum.take(@kept_lines)
    }
  end

  # Native code prints what it likes, and so does a VM that ends in a panic.
  defp printable(line) do
    if String.valid?(line),
      do: line,
      else: for(<<byte <- line>>, into: "", do: <<byte::utf8>>)
  end
end
