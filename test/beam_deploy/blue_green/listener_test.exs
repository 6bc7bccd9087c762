defmodule BeamDeploy.BlueGreen.ListenerTest do
  # One server of this name for each node: not async.
  use ExUnit.Case

  import ExUnit.CaptureLog

  alias BeamDeploy.BlueGreen.{Listener, Settle}
  alias BeamDeploy.Native
  alias BeamDeploy.Test.{Http, Wait}

  @loopback {127, 0, 0, 1}

  @moduletag :capture_log

  setup context do
    start_supervised!({Listener, mode: Map.get(context, :mode, :steered)})
    {:ok, port: Http.free_port()}
  end

  # What a peer of this side does.
  defp serve(side, {host, port, only_v6}) do
    {:ok, [descriptor]} = Listener.descriptor(side, {host, port, only_v6})
    on_exit(fn -> Native.close_descriptor(descriptor) end)

    family =
      case host do
        {:local, _path} -> :local
        ip -> if tuple_size(ip) == 8, do: :inet6, else: :inet
      end

    {:ok, socket} = :gen_tcp.listen(0, [family, fd: descriptor, backlog: 100, active: false])
    socket
  end

  defp connect(host, port, timeout \\ 5_000),
    do: :gen_tcp.connect(host, port, [:binary, active: false], timeout)

  defp accept(socket) do
    with {:ok, connection} <- :gen_tcp.accept(socket, 0), do: :gen_tcp.close(connection)
  end

  defp await_accept(socket), do: Wait.until(fn -> accept(socket) == :ok end)

  # A client is connected a moment before its connection is in the queue.
  defp await_queued_by_blue(address) do
    Wait.until(fn ->
      %{pair: pair} = :sys.get_state(Listener).entries[address]
      Native.listener_queue(pair, 0) == {:ok, 1}
    end)
  end

  describe "steering" do
    test "takes all addresses that a side serves, and only those", %{port: port} do
      other = Http.free_port()
      blue = serve(:blue, {@loopback, port, nil})
      given_up = serve(:blue, {@loopback, other, nil})
      green = serve(:green, {@loopback, port, nil})

      assert :ok = Listener.cutover(:green)
      {:ok, _client} = connect(@loopback, port)
      await_accept(green)
      assert accept(blue) == {:error, :timeout}
      # The new version does not serve it: the old one does until it is gone.
      {:ok, _client} = connect(@loopback, other)
      await_accept(given_up)

      # Nobody will accept it any more.
      {:ok, late} = connect(@loopback, other)
      await_queued_by_blue({@loopback, other, nil})
      assert {:ok, 1} = Listener.release(:blue)
      assert {:error, :closed} = :gen_tcp.recv(late, 0, 10_000)
      assert %{active: :green, addresses: [%{port: ^port, sides: [:green]}]} = Listener.info()
      # The peer that adopted it is not gone, as it would be.
      :ok = :gen_tcp.close(given_up)
    end

    test "has no say between two addresses of one port: the narrower one gets its connections", %{
      port: port
    } do
      any = {0, 0, 0, 0}
      _narrow = serve(:blue, {@loopback, port, nil})
      wide = serve(:green, {any, port, nil})
      :ok = Listener.cutover(:green)
      {:ok, client} = connect(@loopback, port)
      await_queued_by_blue({@loopback, port, nil})
      assert accept(wide) == {:error, :timeout}
      # What waits there when its peer is gone is counted.
      assert {:ok, 1} = Listener.release(:blue)
      assert {:error, :closed} = :gen_tcp.recv(client, 0, 10_000)
    end

    test "of two addresses of one port, by versions that serve both", %{port: port} do
      narrow = serve(:blue, {@loopback, port, nil})
      both = [{@loopback, port, nil}, {{0, 0, 0, 0}, port, nil}]
      [narrow_now, wide] = Enum.map(both, &serve(:green, &1))
      :ok = Listener.cutover(:green)
      {:ok, _client} = connect(@loopback, port)
      await_accept(narrow_now)
      {:ok, _client} = connect({127, 0, 0, 2}, port)
      await_accept(wide)
      assert accept(narrow) == {:error, :timeout}
      assert {:ok, 0} = Listener.release(:blue)
    end

    test "of IPv6, dual stack and IPv6 alone", %{port: port} do
      any = {0, 0, 0, 0, 0, 0, 0, 0}
      v6_loopback = {0, 0, 0, 0, 0, 0, 0, 1}
      only_port = Http.free_port()
      blue = serve(:blue, {any, port, false})
      only = serve(:blue, {v6_loopback, only_port, true})
      {:ok, _client} = connect(@loopback, port)
      await_accept(blue)
      {:ok, _client} = connect(v6_loopback, port)
      await_accept(blue)
      {:ok, _client} = connect(v6_loopback, only_port)
      await_accept(only)
      assert {:error, :econnrefused} = connect(@loopback, only_port)

      green = serve(:green, {any, port, nil})
      :ok = Listener.cutover(:green)
      {:ok, _client} = connect(@loopback, port)
      await_accept(green)
      {:ok, _client} = connect(v6_loopback, port)
      await_accept(green)
      # What the system's default makes of no answer is the same address.
      assert length(Listener.info().addresses) == 2
    end

    @tag :tmp_dir
    test "of a local socket by its name", %{tmp_dir: tmp_dir} do
      # The kernel takes 107 bytes.
      link =
        Path.join(System.tmp_dir!(), "l#{System.pid()}_#{System.unique_integer([:positive])}")

      File.ln_s!(tmp_dir, link)
      on_exit(fn -> File.rm!(link) end)
      path = Path.join(link, "s")
      blue = serve(:blue, {{:local, path}, 0, nil})
      {:ok, _client} = connect({:local, path}, 0)
      await_accept(blue)
      green = serve(:green, {{:local, path}, 0, nil})
      {:ok, _client} = connect({:local, path}, 0)
      assert Listener.queued(:blue) == 0
      await_accept(blue)
      {:ok, late} = connect({:local, path}, 0)
      :ok = Listener.cutover(:green)
      assert Listener.queued(:blue) == 1
      {:ok, _client} = connect({:local, path}, 0)
      await_accept(green)

      # Nobody will accept it any more, and its client hears of that.
      assert {:ok, 1} = Listener.release(:blue)
      assert {:error, :closed} = :gen_tcp.recv(late, 0, 10_000)
      assert {:ok, 0} = Listener.release(:green)
      assert File.ls!(tmp_dir) == []
    end

    test "a new address lets nobody in before the cutover", %{port: port} do
      _blue = serve(:blue, {@loopback, Http.free_port(), nil})
      green = serve(:green, {@loopback, port, nil})
      assert {:error, :timeout} = connect(@loopback, port, 100)
      assert accept(green) == {:error, :timeout}
      # The client's system repeats what was dropped after a second.
      client = Task.async(fn -> connect(@loopback, port) end)
      :ok = Listener.cutover(:green)
      assert {:ok, _socket} = Task.await(client)
      await_accept(green)
    end

    test "refuses an address that somebody else listens on", %{port: port} do
      options = [{:raw, 1, 15, <<1::32-native>>}, reuseaddr: true, ip: @loopback]
      {:ok, other} = :gen_tcp.listen(port, options)
      assert {:error, :eaddrinuse} = Listener.descriptor(:blue, {@loopback, port, nil})
      :ok = :gen_tcp.close(other)
      assert {:ok, [descriptor]} = Listener.descriptor(:blue, {@loopback, port, nil})
      :ok = Native.close_descriptor(descriptor)
    end
  end

  describe "a side that connections no longer go to" do
    setup %{port: port} do
      blue = serve(:blue, {@loopback, port, nil})
      _green = serve(:green, {@loopback, port, nil})
      {:ok, blue: blue}
    end

    test "settles after a moment when nothing is left", %{blue: _blue} do
      :ok = Listener.cutover(:green)
      started = System.monotonic_time(:millisecond)
      assert :ok = Settle.await(:blue, fn -> nil end, :infinity)
      assert System.monotonic_time(:millisecond) - started >= 50
    end

    test "settles only when its queue is empty", %{port: port, blue: blue} do
      {:ok, _client} = connect(@loopback, port)
      :ok = Listener.cutover(:green)
      settling = Task.async(fn -> Settle.await(:blue, fn -> nil end, :infinity) end)
      assert Task.yield(settling, 300) == nil
      await_accept(blue)
      assert Task.await(settling) == :ok
      # At the latest after its time.
      :ok = Listener.cutover(:blue)
      {:ok, _client} = connect(@loopback, port)
      :ok = Listener.cutover(:green)
      assert Settle.await(:blue, fn -> nil end, 200) == :ok
    end

    test "need not settle when there is a reason not to", %{port: port} do
      {:ok, _client} = connect(@loopback, port)
      :ok = Listener.cutover(:green)
      parent = self()

      reason = fn ->
        send(parent, :asked)
        over()
      end

      settling = Task.async(fn -> Settle.await(:blue, reason, :infinity) end)

      assert_receive :asked
      send(settling.pid, :over)
      assert Task.await(settling) == {:stopped, :over}
    end

    defp over do
      receive do
        :over -> :over
      after
        0 -> nil
      end
    end

    test "that serves nothing the other one does has nothing to settle", %{port: port} do
      {:ok, _client} = connect(@loopback, port)
      {:ok, 0} = Listener.release(:green)
      :ok = Listener.cutover(:green)
      refute Listener.moved?(:blue)
      assert Settle.await(:blue, fn -> nil end, 5_000) == :ok
    end
  end

  describe "overlap" do
    # The kernel refuses the program where it may not take the memory for it: a limit of each network namespace.
    @tag :namespaces
    test "is what remains where the system refuses, and is said" do
      script = """
      alias BeamDeploy.BlueGreen.Listener
      {:ok, _} = Listener.start_link(mode: :steered)
      [:overlap, :overlap] = for side <- [:blue, :green], do: Listener.descriptor(side, {{127, 0, 0, 1}, 4000, nil})
      for _peer <- 1..2, do: {:ok, _} = :gen_tcp.listen(4000, [BeamDeploy.PeerNode.Servers.reuse_port(), ip: {127, 0, 0, 1}])
      :ok = Listener.cutover(:green)
      %{mode: :overlap, addresses: [%{mode: :overlap}]} = Listener.info()
      IO.puts("shared")
      """

      commands = "ip link set lo up && echo 16 > /proc/sys/net/core/optmem_max && exec \"$@\""
      elixir = ["elixir", "-pa", Application.app_dir(:beam_deploy, "ebin"), "-e", script]

      assert {output, 0} =
               System.cmd("unshare", ["--net", "sh", "-c", commands, "sh" | elixir],
                 stderr_to_stdout: true
               )

      assert output =~ "shared"
      assert output =~ "this system cannot steer connections between listening sockets (:enomem)"
      assert [_one] = Regex.scan(~r/plain SO_REUSEPORT/, output)
    end

    @tag mode: :overlap
    test "that was asked for shares ports, and says so", %{port: port} do
      assert Listener.descriptor(:blue, {@loopback, port, nil}) == :overlap
      assert Listener.descriptor(:green, {@loopback, port, nil}) == :overlap
      assert Listener.cutover(:green) == :ok
      refute Listener.moved?(:blue)

      assert %{
               mode: :overlap,
               addresses: [%{port: ^port, mode: :overlap, sides: [:blue, :green]}]
             } = Listener.info()

      assert {:ok, 0} = Listener.release(:blue)
      stop_supervised!(Listener)

      assert capture_log(fn -> start_supervised!({Listener, mode: :overlap}) end) =~
               "plain SO_REUSEPORT"
    end
  end
end
