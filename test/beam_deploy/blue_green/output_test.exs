defmodule BeamDeploy.BlueGreen.OutputTest do
  # Not async: what it prints goes to the VM's own output, which is captured.
  use ExUnit.Case

  import ExUnit.CaptureIO
  alias BeamDeploy.BlueGreen.Output
  alias BeamDeploy.Test.Wait

  @moduletag :tmp_dir

  # In the place of `:peer`: it is told that the node has started once it has got so many bytes.
  defmodule Control do
    use GenServer

    @impl true
    def init(count), do: {:ok, {count, ""}}

    @impl true
    def handle_call(:get_state, _from, {count, bytes} = state),
      do: {:reply, if(byte_size(bytes) < count, do: :booting, else: :running), state}

    def handle_call(:bytes, _from, {_count, bytes} = state), do: {:reply, bytes, state}

    @impl true
    def handle_info({_port, {:data, more}}, {count, bytes}),
      do: {:noreply, {count, bytes <> more}}

    def handle_info({_port, {:exit_status, status}}, _state),
      do: {:stop, {:shutdown, status}, status}
  end

  # What arrives of these bytes where they go; of the protocol there are so many bytes.
  defp pass(tmp_dir, bytes, count) do
    file = Path.join(tmp_dir, "bytes")
    File.write!(file, bytes)
    log = Path.join(tmp_dir, "log")
    {:ok, control} = GenServer.start(Control, count)
    monitor = Process.monitor(control)
    {:ok, output} = Output.start_link(log)

    # It begins, as a peer does, when it is told to, and ends when what it has printed has been asked for.
    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        :exit_status,
        args: ["-c", ~s(read -r _; cat "$0"; read -r _; exit 3), file]
      ])

    printed =
      capture_io(:user, fn ->
        :ok = Output.own(output, port, control)
        Wait.until(fn -> Output.tail(output) =~ "the end" end)
        send(self(), {:protocol, GenServer.call(control, :bytes)})
        :ok = Output.finish_file(output)
        Port.command(port, "\n")
        assert_receive {:DOWN, ^monitor, :process, _pid, {:shutdown, 3}}
        assert Output.tail(output) =~ "the end"
        :ok = GenServer.stop(output)
      end)

    refute File.exists?(log)
    assert_received {:protocol, protocol}
    {protocol, printed}
  end

  test "the protocol ends where it ends, and all else is text", %{tmp_dir: tmp_dir} do
    protocol = for _ <- 1..50, into: "", do: <<3::2, :rand.uniform(16) - 1::4, 3::2>>
    <<first::binary-20, second::binary>> = protocol
    bytes = [first, "a warning\n", second, "été\n", String.duplicate("\xC3", 32), "\nthe end\n"]

    assert pass(tmp_dir, bytes, 50) ==
             {protocol, "a warning\nété\n#{String.duplicate("Ã", 32)}\nthe end\n"}
  end

  test "text that is none, and lines without end", %{tmp_dir: tmp_dir} do
    noise =
      for <<byte <- :crypto.strong_rand_bytes(300_000)>>, byte != ?\n, into: "", do: <<byte>>

    assert {"\xFF", printed} = pass(tmp_dir, [<<0xFF, 0x80>>, noise, "\nthe end\n"], 1)
    assert String.valid?(printed)
    assert printed |> String.split("\n") |> length() > 2
    assert printed =~ "the end\n"
  end
end
