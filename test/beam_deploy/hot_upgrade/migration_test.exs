defmodule BeamDeploy.HotUpgrade.MigrationTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.HotUpgrade.{Migration, Processes}

  defmodule Server do
    use GenServer
    def init(state), do: {:ok, state}
    def handle_call(:get, _from, state), do: {:reply, state, state}

    def handle_call({:wait, told}, _from, state) do
      send(told, {:waits, self()})
      receive do: (:go_on -> {:reply, state, state})
    end

    def code_change(vsn, {:fails, how}, _extra), do: fail(how, vsn)
    def code_change(vsn, state, _extra), do: {:ok, {:changed, vsn, state}}
    defp fail(:raise, _vsn), do: raise("no")
    defp fail(:throw, _vsn), do: throw(:no)
    defp fail(:odd, _vsn), do: :what
    defp fail(:stop, _vsn), do: Process.exit(self(), :kill)
  end

  defmodule Machine do
    @behaviour :gen_statem
    def callback_mode, do: :handle_event_function
    def init(_), do: {:ok, :state, :data}
    def handle_event(_, _, _, _), do: :keep_state_and_data
    def code_change(_vsn, state, data, _extra), do: {:ok, {:changed, state}, {:changed, data}}
  end

  defmodule Handler do
    @behaviour :gen_event
    def init(state), do: {:ok, state}
    def handle_event(_, state), do: {:ok, state}
    def handle_call(:get, state), do: {:ok, state, state}
    def code_change(_vsn, {:fails, _how}, _extra), do: raise("no")
    def code_change(_vsn, state, _extra), do: {:ok, {:changed, state}}
  end

  defmodule OtherHandler do
    @behaviour :gen_event
    def init(state), do: {:ok, state}
    def handle_event(_, state), do: {:ok, state}
    def handle_call(:get, state), do: {:ok, state, state}
    def code_change(_vsn, state, _extra), do: {:ok, {:changed, state}}
  end

  defmodule Notes do
    def code_change(_vsn, state, _extra), do: {:ok, {:changed, state}}
  end

  @own %{code_change: :own, state_change: false}
  @facts %{
    Server => @own,
    Handler => @own,
    Notes => @own,
    Machine => %{code_change: :none, state_change: true}
  }

  defp prepare(targets, facts \\ @facts) do
    migrants =
      for {pid, kind, module} <- targets,
          do: Migration.migrant(%{pid: pid, kind: kind, modules: [module]}, facts)

    Migration.prepare(migrants, MapSet.new(Process.list()))
  end

  defp nobody, do: fn known -> {[], known} end
  defp suspended?(pid), do: match?({:status, _, _, [_, :suspended | _]}, :sys.get_status(pid))

  # What the processes keep goes away after they were resumed.
  defp settled(pid) do
    _ = :sys.get_state(pid)
    {:dictionary, dictionary} = Process.info(pid, :dictionary)
    Keyword.keys(dictionary)
  end

  defp start(state) do
    {:ok, pid} = GenServer.start(Server, state)
    on_exit(fn -> Process.exit(pid, :kill) end)
    pid
  end

  test "states are converted with the version they come from" do
    one = start(1)
    {:ok, machine} = :gen_statem.start_link(Machine, nil, [])
    {:ok, manager} = :gen_event.start_link()
    :ok = :gen_event.add_handler(manager, Handler, :handler)
    {:ok, agent} = Agent.start_link(fn -> :agent end)
    keys = for pid <- [one, machine, manager, agent], do: settled(pid)

    migration =
      prepare([
        {one, :server, Server},
        {machine, :server, Machine},
        {manager, :event_manager, Handler},
        {agent, :agent, Notes}
      ])

    {:ok, migration} = Migration.suspend(migration, nobody(), 10_000)
    assert suspended?(one) and suspended?(machine) and suspended?(agent)
    {:ok, migration} = Migration.change(migration, 10_000)
    :ok = Migration.resume(migration)
    :ok = Migration.finish(migration)

    assert GenServer.call(one, :get) == {:changed, Processes.vsn(Server), 1}
    assert :sys.get_state(machine) == {{:changed, :state}, {:changed, :data}}
    assert :gen_event.call(manager, Handler, :get) == {:changed, :handler}
    assert Agent.get(agent, & &1) == {:changed, :agent}
    # Nothing is left of it.
    assert keys == for(pid <- [one, machine, manager, agent], do: settled(pid))
    refute_receive _anything, 0
  end

  test "when any fails, the states of all are as before" do
    good = for n <- 1..20, do: start(n)
    {:ok, machine} = :gen_statem.start_link(Machine, nil, [])
    {:ok, manager} = :gen_event.start_link()
    :ok = :gen_event.add_handler(manager, Handler, :handler)
    bad = for how <- [:raise, :throw, :odd], do: start({:fails, how})

    targets =
      [{machine, :server, Machine}, {manager, :event_manager, Handler}] ++
        for(pid <- good ++ bad, do: {pid, :server, Server})

    {:ok, migration} = Migration.suspend(prepare(targets), nobody(), 10_000)
    assert {:error, failures, migration} = Migration.change(migration, 10_000)
    assert Enum.sort(for failure <- failures, do: failure.pid) == Enum.sort(bad)
    restored = Migration.restore(migration)
    :ok = Migration.resume(migration)
    assert Migration.await_restored(restored, 10_000) == []
    :ok = Migration.finish(migration)

    assert for(pid <- good, do: GenServer.call(pid, :get)) == Enum.to_list(1..20)

    assert for(pid <- bad, do: GenServer.call(pid, :get)) == [
             {:fails, :raise},
             {:fails, :throw},
             {:fails, :odd}
           ]

    assert :sys.get_state(machine) == {:state, :data}
    assert :gen_event.call(manager, Handler, :get) == :handler
    refute_receive _anything, 0
  end

  test "every handler of an event manager counts, whichever of them fails" do
    {:ok, manager} = :gen_event.start_link()
    :ok = :gen_event.add_handler(manager, Handler, {:fails, :handler})
    :ok = :gen_event.add_handler(manager, OtherHandler, :other)

    for modules <- [[Handler, OtherHandler], [OtherHandler, Handler]] do
      target = %{pid: manager, kind: :event_manager, modules: modules}
      facts = Map.put(@facts, OtherHandler, @own)
      migration = Migration.prepare([Migration.migrant(target, facts)], MapSet.new())
      {:ok, migration} = Migration.suspend(migration, nobody(), 10_000)

      assert {:error, [%{pid: ^manager, module: Handler}], migration} =
               Migration.change(migration, 10_000)

      restored = Migration.restore(migration)
      :ok = Migration.resume(migration)
      assert Migration.await_restored(restored, 10_000) == []
      :ok = Migration.finish(migration)
      assert :gen_event.call(manager, OtherHandler, :get) == :other
      assert :gen_event.call(manager, Handler, :get) == {:fails, :handler}
    end
  end

  test "who dies is left out, before and while states are converted" do
    one = start(1)
    dies = start({:fails, :stop})
    gone = start(3)
    migration = prepare(for pid <- [one, dies, gone], do: {pid, :server, Server})
    Process.exit(gone, :kill)
    {:ok, migration} = Migration.suspend(migration, nobody(), 10_000)
    {:ok, migration} = Migration.change(migration, 10_000)
    assert Migration.pids(migration.group) == [one]
    :ok = Migration.resume(migration)
    :ok = Migration.finish(migration)
    assert {:changed, _vsn, 1} = GenServer.call(one, :get)
  end

  test "who cannot be suspended in time is named and resumed when he comes to it" do
    one = start(1)
    busy = start(2)
    test = self()
    caller = Task.async(fn -> GenServer.call(busy, {:wait, test}) end)
    assert_receive {:waits, ^busy}
    migration = prepare(for pid <- [one, busy], do: {pid, :server, Server})

    assert {:error, {:suspend_failed, [^busy]}, migration} =
             Migration.suspend(migration, nobody(), 3_000)

    :ok = Migration.resume(migration)
    :ok = Migration.finish(migration)
    assert GenServer.call(one, :get) == 1
    send(busy, :go_on)
    assert Task.await(caller) == 2
    assert GenServer.call(busy, :get) == 2
    refute suspended?(busy)
    # Its late answers go nowhere.
    refute_receive _anything, 0
  end

  test "who begins meanwhile is suspended as well" do
    one = start(1)
    late = start(2)
    newcomer = Migration.migrant(%{pid: late, kind: :server, modules: [Server]}, @facts)
    migration = prepare([{one, :server, Server}])

    newcomers = fn known ->
      if MapSet.member?(known, late_marker()),
        do: {[], known},
        else: {[newcomer], MapSet.put(known, late_marker())}
    end

    {:ok, migration} = Migration.suspend(migration, newcomers, 10_000)
    assert suspended?(late)
    {:ok, migration} = Migration.change(migration, 10_000)
    :ok = Migration.resume(migration)
    :ok = Migration.finish(migration)
    assert {:changed, _vsn, 2} = GenServer.call(late, :get)
  end

  defp late_marker, do: :late

  test "the state of an agent is no business of the callback module that started it" do
    {:ok, agent} = Agent.start_link(fn -> :agent end)
    migration = prepare([{agent, :agent, Server}])
    assert migration.migrating == %{}
    {:ok, migration} = Migration.suspend(migration, nobody(), 10_000)
    {:ok, migration} = Migration.change(migration, 10_000)
    :ok = Migration.resume(migration)
    :ok = Migration.finish(migration)
    assert Agent.get(agent, & &1) == :agent
  end

  test "no state is converted that needs no conversion" do
    one = start(1)

    migration =
      prepare([{one, :server, Server}], %{
        Server => %{code_change: :identity, state_change: false}
      })

    assert migration.migrating == %{}
    {:ok, migration} = Migration.suspend(migration, nobody(), 10_000)
    {:ok, migration} = Migration.change(migration, 10_000)
    :ok = Migration.resume(migration)
    :ok = Migration.finish(migration)
    assert GenServer.call(one, :get) == 1
  end
end
