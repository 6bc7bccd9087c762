defmodule BeamDeploy.BlueGreen.Output do
  @moduledoc false
  # Responsible for: what a peer prints while it boots: a file that the peer's descriptors 1 and 2 lead to, copied to the
  # parent's own output as it grows, with its last lines kept for the error if the boot fails.
  # Not for: a peer that serves: it prints to the parent's descriptors itself.

  use GenServer, restart: :temporary

  @interval 100
  @kept_lines 40

  @doc "Makes the file anew; it is gone when this process ends."
  def start_link(path), do: GenServer.start_link(__MODULE__, path)

  @doc "An I/O device that appends to the file."
  @spec device(pid()) :: pid()
  def device(output), do: GenServer.call(output, :device)

  @doc "The last lines printed."
  @spec tail(pid()) :: String.t()
  def tail(output), do: GenServer.call(output, :tail)

  @impl true
  def init(path) do
    Process.flag(:trap_exit, true)
    _ = File.rm(path)
    :ok = File.touch(path)
    :ok = File.chmod(path, 0o600)
    {:ok, device} = File.open(path, [:append, :utf8])
    {:ok, reader} = :file.open(path, [:read, :raw, :binary])
    schedule()
    {:ok, %{path: path, device: device, reader: reader, pending: "", lines: []}}
  end

  @impl true
  def handle_call(:device, _from, state), do: {:reply, state.device, state}

  def handle_call(:tail, _from, state) do
    state = forward(state)

    {:reply, state.lines |> Enum.reverse([state.pending]) |> Enum.join("\n") |> String.trim(),
     state}
  end

  @impl true
  def handle_info(:forward, state) do
    schedule()
    {:noreply, forward(state)}
  end

  def handle_info({:EXIT, _pid, reason}, state), do: {:stop, reason, state}

  @impl true
  def terminate(_reason, state) do
    state = forward(state)
    if state.pending != "", do: print([state.pending, ?\n])
    _ = File.rm(state.path)
    :ok
  end

  defp schedule, do: Process.send_after(self(), :forward, @interval)

  # Whole lines only: two peers and the parent print at the same time.
  defp forward(state) do
    case :file.read(state.reader, 1_048_576) do
      {:ok, bytes} ->
        {lines, [pending]} = (state.pending <> bytes) |> String.split("\n") |> Enum.split(-1)
        lines = Enum.map(lines, &printable/1)
        print(Enum.map(lines, &[&1, ?\n]))
        kept = lines |> Enum.reverse() |> Enum.concat(state.lines) |> Enum.take(@kept_lines)
        forward(%{state | pending: pending, lines: kept})

      :eof ->
        state
    end
  end

  # Native code prints what it likes, and so does a VM that ends in a panic.
  defp printable(line) do
    if String.valid?(line),
      do: line,
      else: for(<<byte <- line>>, into: "", do: <<byte::utf8>>)
  end

  defp print([]), do: :ok
  defp print(chunk), do: IO.write(:user, chunk)
end
