defmodule BeamDeploy.Test.LineServer do
  @moduledoc false
  # A server whose connections are processes as those of real ones: a GenServer that answers a request within a callback.
  # A line is a request: the milliseconds it takes, or `upgrade`. It answers `keep` or, when it closes after that, `close`.
  # It is also what drains it: the functions of a module under `BeamDeploy.Integration`.

  use Supervisor

  alias BeamDeploy.PeerNode.Connection

  defmodule Handler do
    @moduledoc false
    use GenServer, restart: :temporary

    def start_link(_options), do: GenServer.start_link(__MODULE__, [])

    @impl true
    def init([]) do
      Process.flag(:trap_exit, true)
      {:ok, %{socket: nil, last?: false, websocket?: false}}
    end

    @impl true
    def handle_info({:socket, socket}, state) do
      :ok = :inet.setopts(socket, active: :once)
      {:noreply, %{state | socket: socket}}
    end

    def handle_info({:tcp, socket, "upgrade\n"}, state) do
      :ok = :gen_tcp.send(socket, "websocket\n")
      :ok = :inet.setopts(socket, active: :once)
      {:noreply, %{state | websocket?: true}}
    end

    def handle_info({:tcp, socket, line}, state) do
      :ets.update_counter(BeamDeploy.Test.LineServer, :begun, 1)
      line |> String.trim() |> String.to_integer() |> Process.sleep()
      :ok = :gen_tcp.send(socket, if(state.last?, do: "close\n", else: "keep\n"))
      :ok = :inet.setopts(socket, active: :once)
      if state.last?, do: {:stop, :normal, state}, else: {:noreply, state}
    end

    def handle_info({:tcp_closed, _socket}, state), do: {:stop, :normal, state}
  end

  def start_link(_options), do: Supervisor.start_link(__MODULE__, [], name: __MODULE__)

  @impl true
  def init([]) do
    table = :ets.new(__MODULE__, [:named_table, :public])
    options = [:binary, packet: :line, active: false, ip: {127, 0, 0, 1}, nodelay: true]
    {:ok, listener} = :gen_tcp.listen(0, options)
    true = :ets.insert(table, begun: 0, looks: 0, listener: listener)

    Supervisor.init(
      [
        {DynamicSupervisor, name: __MODULE__.Connections},
        {Task, fn -> accept(listener) end}
      ],
      strategy: :one_for_all
    )
  end

  defp accept(listener) do
    {:ok, socket} = :gen_tcp.accept(listener)
    {:ok, pid} = DynamicSupervisor.start_child(__MODULE__.Connections, Handler)
    :ok = :gen_tcp.controlling_process(socket, pid)
    send(pid, {:socket, socket})
    accept(listener)
  end

  # For tests.

  def connect do
    {:ok, port} = __MODULE__ |> :ets.lookup_element(:listener, 2) |> :inet.port()
    options = [:binary, packet: :line, active: false]
    {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, options)
    socket
  end

  def ask(socket, line) do
    :ok = :gen_tcp.send(socket, line <> "\n")
    {:ok, answer} = :gen_tcp.recv(socket, 0, 5_000)
    String.trim(answer)
  end

  def begun, do: :ets.lookup_element(__MODULE__, :begun, 2)
  def looks, do: :ets.lookup_element(__MODULE__, :looks, 2)

  def idle_for do
    [pid] = connections([])
    Connection.idle_for(:sys.get_state(pid).socket, 0)
  end

  # For the drain.

  def servers, do: []

  def connections(_servers) do
    for {_id, pid, _type, _modules} <- DynamicSupervisor.which_children(__MODULE__.Connections),
        do: pid
  end

  def look(%{websocket?: true} = state, _known_idle), do: {{:websocket, :plain}, state}

  def look(state, known_idle) do
    :ets.update_counter(__MODULE__, :looks, 1)
    {{:idle, Connection.idle_for(state.socket, known_idle), state.socket}, %{state | last?: true}}
  end

  def close_websocket(state), do: Connection.close_websocket(state.socket)
  def abandon_unused(_pid, _idle, _waited), do: :in_use
end
