defmodule BeamDeploy.PeerNode.DrainTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.PeerNode.Drain
  alias BeamDeploy.Test.{LineServer, Wait}

  @goodbye <<0x88, 2, 1012::16>>

  setup do
    start_supervised!(LineServer)
    :ok
  end

  # As a rule without a time limit, so that whatever ends does so by itself.
  defp drain(timeout), do: Task.async(Drain, :drain, [timeout, [LineServer]])
  defp now, do: System.monotonic_time(:millisecond)

  test "there is nothing to wait for without connections" do
    assert Wait.await(drain(:infinity)) == %{ended: 0, cut: 0}
  end

  test "a connection in use gets an answer that announces its end, and ends after it" do
    client = LineServer.connect()
    assert LineServer.ask(client, "0") == "keep"
    task = drain(:infinity)
    Wait.until(fn -> LineServer.ask(client, "0") == "close" end)
    assert {:error, :closed} = :gen_tcp.recv(client, 0, 10_000)
    assert Wait.await(task) == %{ended: 1, cut: 0}
  end

  test "an idle connection is closed once nothing has come for a while, and time before the drain counts" do
    client = LineServer.connect()
    assert LineServer.ask(client, "0") == "keep"
    Wait.until(fn -> LineServer.idle_for() > 1_400 end)
    assert Wait.await(drain(:infinity)) == %{ended: 1, cut: 0}
    assert LineServer.looks() == 1

    client = LineServer.connect()
    asked = now()
    assert LineServer.ask(client, "0") == "keep"
    assert Wait.await(drain(:infinity)) == %{ended: 1, cut: 0}
    # The clock that the kernel has of a connection ticks every 10 ms at worst.
    assert now() - asked >= 1_250
    assert {:error, :closed} = :gen_tcp.recv(client, 0, 10_000)
  end

  test "requests in progress are finished side by side" do
    clients = for _ <- 1..20, do: LineServer.connect()
    for client <- clients, do: :ok = :gen_tcp.send(client, "600\n")
    Wait.until(fn -> LineServer.begun() == 20 end)
    started = now()
    assert Wait.await(drain(:infinity)) == %{ended: 20, cut: 0}
    # Each is answered as if nothing were, and may be used once more: it is idle from then on.
    assert now() - started < 20 * 600
    for client <- clients, do: assert({:ok, _answer} = :gen_tcp.recv(client, 0, 10_000))
  end

  test "what has not ended in time is cut" do
    client = LineServer.connect()
    :ok = :gen_tcp.send(client, "60000\n")
    Wait.until(fn -> LineServer.begun() == 1 end)

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        assert Wait.await(drain(300)) == %{ended: 0, cut: 1}
      end)

    assert log =~ "1 connections had not ended in time"
    assert {:error, :closed} = :gen_tcp.recv(client, 0, 10_000)
  end

  test "WebSockets are asked to come back, after the idle connections" do
    idle = LineServer.connect()
    assert LineServer.ask(idle, "0") == "keep"
    sockets = for _ <- 1..10, do: LineServer.connect()
    for socket <- sockets, do: assert(LineServer.ask(socket, "upgrade") == "websocket")

    task = drain(:infinity)
    assert {:error, :closed} = :gen_tcp.recv(idle, 0, 10_000)

    for socket <- sockets do
      :ok = :inet.setopts(socket, packet: :raw)
      assert {:ok, @goodbye} = :gen_tcp.recv(socket, 4, 10_000)
      :ok = :gen_tcp.close(socket)
    end

    assert Wait.await(task) == %{ended: 11, cut: 0}
  end

  test "a WebSocket whose client does not answer is closed all the same" do
    socket = LineServer.connect()
    assert LineServer.ask(socket, "upgrade") == "websocket"
    assert Wait.await(drain(:infinity)) == %{ended: 1, cut: 0}
  end

  describe "decisions" do
    test "a step is taken when it is due" do
      assert Drain.next({:look_at, 100}, 99) == :wait
      assert Drain.next({:look_at, 100}, 100) == :look
      assert Drain.next({:looked_at, 100}, 101) == :wait
      assert Drain.next({:looked_at, 100}, 200) == :check
      assert Drain.next({:websocket, :plain}, 1_000_000) == :wait
      assert Drain.next({:asked_to_close, 0}, 10_000) == :close
      assert Drain.next({:closing, 0}, 10_000) == :kill
      # A request that is being finished has all the time there is.
      assert Drain.next(:leaving, 1_000_000) == :wait
    end

    test "an idle connection is looked at again when it may have been idle for long enough" do
      assert Drain.judge({:idle, 0}, 5_000) == {:look_at, 6_300}
      assert Drain.judge({:idle, 900}, 5_000) == {:look_at, 5_400}
      assert {:look_at, due} = Drain.judge({:idle, 100_000}, 5_000)
      assert due > 5_000
    end

    test "WebSockets are paced, as far as there is time" do
      assert Drain.interval(10, :infinity) == 4.0
      assert Drain.interval(10, 60_000) == 4.0
      # 100,000 of them are spread over half of a minute.
      assert_in_delta Drain.interval(100_000, 60_000) * 100_000, 30_000, 1
      assert Drain.interval(10, -5) == 0.0
    end
  end
end
