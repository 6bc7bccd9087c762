defmodule BeamDeploy.HotUpgrade.ProcessesTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.HotUpgrade.Processes
  alias BeamDeploy.Test.Wait

  defmodule Server do
    use GenServer
    def init(:hibernate), do: {:ok, nil, :hibernate}
    def init(state), do: {:ok, state}

    def handle_call({:deep, depth, test}, _from, state) do
      deep(depth, test)
      {:reply, :ok, state}
    end

    # Deeper than a stacktrace shows.
    defp deep(0, test) do
      send(test, :deep)

      receive do
        :out -> :ok
      end
    end

    defp deep(depth, test), do: [deep(depth - 1, test)] |> hd()
  end

  defmodule Machine do
    @behaviour :gen_statem
    def callback_mode, do: :handle_event_function
    def init(_), do: {:ok, :state, nil}
    def handle_event(_, _, _, _), do: :keep_state_and_data
  end

  defmodule Top do
    use Supervisor
    def init(children), do: Supervisor.init(children, strategy: :one_for_one)
  end

  defmodule Dynamic do
    use DynamicSupervisor
    def init(_), do: DynamicSupervisor.init(strategy: :one_for_one)
  end

  defmodule Notes do
    use Agent
    def start_link(_), do: Agent.start_link(fn -> [] end)
  end

  defmodule Handler do
    @behaviour :gen_event
    def init(_), do: {:ok, nil}
    def handle_event(_, state), do: {:ok, state}
    def handle_call(_, state), do: {:ok, :ok, state}
  end

  defmodule Channel do
    # As Phoenix does it: the process is another module's, and notes the one it works for.
    use GenServer
    def init(view), do: {:ok, Process.put(:"$initial_call", {view, :mount, 3})}
  end

  defmodule View do
    def mount(_, _, _), do: :ok
  end

  defmodule Job do
    def run do
      receive do
        :end -> :ok
      end
    end

    def start_link(_), do: Task.start_link(__MODULE__, :run, [])
  end

  defp found(modules) do
    {targets, known} = Processes.affected(MapSet.new(modules))
    assert MapSet.member?(known, self())
    for target <- targets, into: %{}, do: {target.pid, {target.kind, target.modules}}
  end

  test "servers and state machines, idle, hibernating and deep in a callback" do
    {:ok, idle} = GenServer.start_link(Server, nil)
    {:ok, hibernating} = GenServer.start_link(Server, :hibernate)
    {:ok, busy} = GenServer.start_link(Server, nil)
    {:ok, machine} = :gen_statem.start_link(Machine, nil, [])
    test = self()
    caller = Task.async(fn -> GenServer.call(busy, {:deep, 30, test}) end)
    assert_receive :deep
    found = found([Server, Machine])
    for pid <- [idle, hibernating, busy], do: assert(found[pid] == {:server, [Server]})
    assert found[machine] == {:server, [Machine]}
    assert found([Top]) == %{}
    send(busy, :out)
    assert Task.await(caller) == :ok
  end

  test "supervisors of every kind" do
    {:ok, top} = Supervisor.start_link(Top, [])
    {:ok, dynamic} = DynamicSupervisor.start_link(Dynamic, [])
    {:ok, _inline} = Supervisor.start_link([], strategy: :one_for_one)

    assert found([Top, Dynamic]) == %{
             top => {:supervisor, [Top]},
             dynamic => {:supervisor, [Dynamic]}
           }
  end

  test "agents by the function they began with, event managers by their handlers" do
    {:ok, agent} = Notes.start_link([])
    {:ok, manager} = :gen_event.start_link()
    :ok = :gen_event.add_handler(manager, {Handler, 1}, [])
    {:ok, _without} = :gen_event.start_link()

    assert found([Notes, Handler]) == %{
             agent => {:agent, [Notes]},
             manager => {:event_manager, [Handler]}
           }
  end

  test "channels by what they work for" do
    {:ok, channel} = GenServer.start_link(Channel, View)
    assert found([View]) == %{channel => {:channel, [View]}}
  end

  test "busy agents are told from tasks, which are left alone like plain processes" do
    test = self()

    {:ok, agent} = Notes.start_link([])

    updating =
      Task.async(fn ->
        Agent.update(agent, fn state ->
          send(test, {:in, self()})

          receive do
            :out -> state
          end
        end)
      end)

    assert_receive {:in, ^agent}
    {:ok, task} = Job.start_link([])
    spawned = spawn_link(Job, :run, [])

    supervised = start_supervised!(%{id: Job, start: {Job, :start_link, [[]]}})
    found = found([Job, Notes])
    assert found == %{agent => {:agent, [Notes]}}
    for pid <- [task, spawned, supervised], do: send(pid, :end)
    send(agent, :out)
    Task.await(updating)
  end

  test "the supervisors that start affected processes come with them" do
    {:ok, top} =
      Supervisor.start_link([%{id: 1, start: {GenServer, :start_link, [Server, nil]}}],
        strategy: :one_for_one
      )

    [{1, pid, _, _}] = Supervisor.which_children(top)
    found = found([Server])
    assert found[pid] == {:server, [Server]}
    assert found[top] == {:parent, []}
  end

  test "who begins later is a newcomer once" do
    {[], known} = {[], elem(Processes.affected(MapSet.new([Server])), 1)}
    {:ok, pid} = GenServer.start_link(Server, nil)
    {targets, known} = Processes.newcomers(MapSet.new([Server]), known)
    assert pid in Enum.map(targets, & &1.pid)
    {targets, _known} = Processes.newcomers(MapSet.new([Server]), known)
    refute pid in Enum.map(targets, & &1.pid)
  end

  test "who has not noted yet what it runs is looked at again" do
    changed = MapSet.new([Server])
    {_targets, known} = Processes.affected(changed)
    pid = held_before_its_first_step()
    {targets, known} = Processes.newcomers(changed, known)
    refute pid in Enum.map(targets, & &1.pid)
    true = :erlang.resume_process(pid)
    assert :sys.get_state(pid) == nil
    {targets, known} = Processes.newcomers(changed, known)
    assert pid in Enum.map(targets, & &1.pid)
    {targets, _known} = Processes.newcomers(changed, known)
    refute pid in Enum.map(targets, & &1.pid)
  end

  # As soon as one is caught that no scheduler has got to.
  defp held_before_its_first_step do
    pid = :proc_lib.spawn(:gen, :init_it, [:gen_server, self(), :self, Server, nil, []])
    true = :erlang.suspend_process(pid)

    if Process.info(pid, :dictionary) == {:dictionary, []},
      do: pid,
      else: held_before_its_first_step()
  end

  test "a supervisor that does not answer is no obstacle" do
    {:ok, top} = Supervisor.start_link(Top, [])
    :ok = :sys.suspend(top)
    assert Processes.children(top) == []
    :ok = :sys.resume(top)
    Wait.until(fn -> Process.info(top, :message_queue_len) == {:message_queue_len, 0} end)
  end
end
