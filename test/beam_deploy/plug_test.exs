# What the tests need of Cowboy, which is no dependency: the calls that are made, with the shapes they have there.
defmodule :cowboy_stream do
  def init(_stream, request, _options), do: {request.commands, :next}
  def data(_stream, _final, commands, :next), do: {commands, :next}
  def info(_stream, commands, :next), do: {commands, :next}
  def terminate(_stream, reason, :next), do: reason
  def early_error(_stream, _reason, _request, response, _options), do: response
end

defmodule Bandit.InitialHandler do
  # Bandit's waits for the first bytes here.
  def handle_connection(socket), do: {:received, :gen_tcp.recv(socket, 3)}
end

defmodule ThousandIsland.Transports.SSL do
  # Thousand Island's calls ssl here, and the process of the connection.
  def handshake(tls) do
    monitor = Process.monitor(tls)
    receive do: ({:DOWN, ^monitor, :process, ^tls, reason} -> {:error, reason})
  end
end

defmodule BeamDeploy.PlugTest do
  # Not async: that a node drains is known to all of it.
  use ExUnit.Case, async: false

  alias BeamDeploy.Integration.{CowboyStream, ThousandIsland}
  alias BeamDeploy.PeerNode.Drain

  @close {"connection", "close"}

  defp drain do
    assert Drain.run(1_000) == %{ended: 0, cut: 0}
    on_exit(fn -> :persistent_term.erase({Drain, :draining}) end)
  end

  defp send_response(conn), do: Enum.reduce(conn.before_send, conn, & &1.(&2))
  defp answer(conn), do: conn |> BeamDeploy.Plug.call(BeamDeploy.Plug.init([])) |> send_response()

  test "a node drains from when it is told" do
    refute BeamDeploy.draining?()
    drain()
    assert BeamDeploy.draining?()
  end

  test "an answer announces the end of the connection while the node drains, not before" do
    assert answer(%Plug.Conn{}).resp_headers == []
    in_progress = BeamDeploy.Plug.call(%Plug.Conn{}, [])
    drain()
    assert send_response(in_progress).resp_headers == [@close]
    assert answer(%Plug.Conn{}).resp_headers == [@close]

    assert answer(%Plug.Conn{resp_headers: [{"connection", "keep-alive"}]}).resp_headers == [
             @close
           ]

    assert answer(%Plug.Conn{protocol: :"HTTP/1"}).resp_headers == [@close]
  end

  test "HTTP/2 knows no such header" do
    drain()
    assert answer(%Plug.Conn{protocol: :"HTTP/2"}).resp_headers == []
  end

  describe "Cowboy's stream handler" do
    @request %{version: :"HTTP/1.1", commands: []}

    test "adds the header to responses while the node drains" do
      response = {:response, 200, %{"a" => "b"}, "body"}
      others = [{:spawn, self(), 5_000}, {:data, :fin, "x"}]
      {[], stream} = CowboyStream.init(1, @request, %{})
      assert {[^response | ^others], _stream} = CowboyStream.info(1, [response | others], stream)

      drain()
      closing = %{"a" => "b", "connection" => "close"}

      assert {[{:response, 200, ^closing, "body"} | ^others], ^stream} =
               CowboyStream.info(1, [response | others], stream)

      assert {[{:headers, 200, ^closing}], ^stream} =
               CowboyStream.data(1, :fin, [{:headers, 200, %{"a" => "b"}}], stream)

      assert {[{:response, 200, ^closing, "body"}], ^stream} =
               CowboyStream.init(1, %{@request | commands: [response]}, %{})
    end

    test "leaves HTTP/2 as it is" do
      drain()
      response = {:response, 200, %{}, ""}
      request = %{version: :"HTTP/2", commands: [response]}
      assert {[^response], stream} = CowboyStream.init(1, request, %{})
      assert {[^response], ^stream} = CowboyStream.info(1, [response], stream)
    end
  end

  describe "a connection of Bandit" do
    setup do
      {:ok, listener} = :gen_tcp.listen(0, ip: {127, 0, 0, 1}, active: false)
      {:ok, port} = :inet.port(listener)
      {:ok, client} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false])
      {:ok, socket} = :gen_tcp.accept(listener)
      [socket: %{socket: socket}, client: client]
    end

    defmodule Hello do
      def call(conn, options), do: %{conn | protocol: {conn.protocol, options}}
    end

    test "that speaks HTTP/1.1 announces its end from when it is looked at", %{socket: socket} do
      state = %{
        handler_module: Bandit.HTTP1.Handler,
        plug: {Hello, :options},
        opts: %{http_1: [max_requests: 7, enabled: true], http: []}
      }

      assert {{:idle, idle, raw}, {^socket, looked_at}} = ThousandIsland.look({socket, state}, 0)
      assert idle < 5_000
      assert raw == socket.socket
      assert looked_at.opts.http_1[:max_requests] == 1
      assert looked_at.opts.http_1[:enabled]
      # A second look changes nothing more.
      assert {{:idle, _, _}, {^socket, ^looked_at}} = ThousandIsland.look({socket, looked_at}, 0)

      {plug, options} = looked_at.plug
      conn = plug.call(%Plug.Conn{}, options)
      assert conn.protocol == {:"HTTP/1.1", :options}
      assert length(conn.before_send) == 1

      function = fn conn, options -> Hello.call(conn, options) end

      {_report, {_socket, %{plug: {plug, options}}}} =
        ThousandIsland.look({socket, %{state | plug: {function, :own}}}, 0)

      assert plug.call(%Plug.Conn{}, options).protocol == {:"HTTP/1.1", :own}
    end

    test "that speaks HTTP/2 tells its client once", %{socket: socket, client: client} do
      connection = {socket, %{handler_module: Bandit.HTTP2.Handler}}

      task =
        Task.async(fn ->
          for _ <- 1..2, do: ThousandIsland.look(connection, 0)
        end)

      assert [{{:idle, _, nil}, ^connection}, {{:idle, _, nil}, ^connection}] = Task.await(task)
      goaway = <<0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0>>
      assert {:ok, ^goaway} = :gen_tcp.recv(client, 17, 10_000)
      assert {:error, :timeout} = :gen_tcp.recv(client, 0, 50)
    end

    test "on which nothing ever came is ended, once it has waited for long enough", %{
      socket: socket
    } do
      %{socket: socket} = socket

      task =
        Task.async(fn ->
          receive do: (:go -> :ok)
          Bandit.InitialHandler.handle_connection(socket)
        end)

      :ok = :gen_tcp.controlling_process(socket, task.pid)
      send(task.pid, :go)

      BeamDeploy.Test.Wait.until(fn ->
        ThousandIsland.abandon_unused(task.pid, 300, 0) == :abandoned
      end)

      assert Task.await(task) == {:received, {:error, :closed}}
      assert ThousandIsland.abandon_unused(task.pid, 0, 1_000) == :in_use
    end

    test "is a WebSocket of Phoenix or another, or something else", %{socket: socket} do
      defmodule Channels do
        def __channel__(_topic), do: nil
      end

      for {handler, kind} <- [{Channels, :phoenix}, {Hello, :plain}] do
        state = %{handler_module: Bandit.WebSocket.Handler, connection: %{websock: handler}}
        assert {{:websocket, ^kind}, {_, ^state}} = ThousandIsland.look({socket, state}, 0)
      end

      assert {:leaving, {^socket, :state}} = ThousandIsland.look({socket, :state}, 0)
    end

    test "that has not been handed its socket is none to end" do
      connection = {nil, %{handler_module: Bandit.InitialHandler}}
      assert ThousandIsland.look(connection, 0) == {:busy, connection}
    end

    test "of TLS is ended once nothing has come for long enough, one that is slow is not", %{
      socket: %{socket: socket},
      client: client
    } do
      tls = start_tls()
      handshake = start_handshake(tls)
      :ok = :gen_tcp.controlling_process(socket, tls)
      :ok = :gen_tcp.send(client, "a byte")
      assert ThousandIsland.abandon_unused(handshake, 30_000, 60_000) == :in_use
      refute_received {:terminate, _reason}

      BeamDeploy.Test.Wait.until(fn ->
        ThousandIsland.abandon_unused(handshake, 300, 0) == :abandoned
      end)

      assert_receive {:terminate, :normal}, 10_000
    end

    test "of TLS without a socket is ended once it has not answered for long enough" do
      handshake = start_handshake(start_tls())
      assert ThousandIsland.abandon_unused(handshake, 1_000, 999) == :in_use
      assert ThousandIsland.abandon_unused(handshake, 1_000, 1_000) == :abandoned
      assert_receive {:terminate, :normal}, 10_000
    end

    # The process of ssl that a socket belongs to: it says what it was told.
    defp start_tls do
      test = self()

      start_supervised!(
        {Task, fn -> receive do: ({:system, _from, request} -> send(test, request)) end}
      )
    end

    defp start_handshake(tls) do
      {:ok, pid} = Task.start(Elixir.ThousandIsland.Transports.SSL, :handshake, [tls])

      BeamDeploy.Test.Wait.until(fn ->
        Process.info(pid, :monitors) == {:monitors, [process: tls]}
      end)

      pid
    end
  end
end
