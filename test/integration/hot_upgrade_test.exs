defmodule BeamDeploy.Integration.HotUpgradeTest do
  # Upgrades of a real release, in an OS process of its own.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.HotRelease
  import BeamDeploy.Test.LogFile

  alias BeamDeploy.Test.{HotRelease, Root, Wait}

  @moduletag :integration
  @moduletag :tmp_dir

  # Workers 1 to 3, of which 2 is the one that makes trouble in some variants; 4 hibernates.
  @workers """
  for id <- [1, 2, 3, {:hibernating, 4}], do: {:ok, _} = DynamicSupervisor.start_child(HotApp.Workers, {HotApp.Worker, id})
  :ok
  """

  @states """
          for({_, pid, _, _} <- DynamicSupervisor.which_children(HotApp.Workers), is_pid(pid), do: {pid, GenServer.call(pid, :get)})
          """
          |> String.trim()

  # Code, states and processes as far as an upgrade could touch them.
  @snapshot """
  %{
    workers: #{@states},
    counter: {Process.whereis(HotApp.Counter), HotApp.Counter.get()},
    machine: :gen_statem.call(HotApp.Machine, :get),
    code: for(m <- [HotApp.Counter, HotApp.Worker, HotApp.Label, HotApp.Plain], do: m.module_info(:md5)),
    path: :code.get_path(),
    fresh: :code.is_loaded(HotApp.Fresh),
    gone: :code.is_loaded(HotApp.Gone),
    vsn: Application.spec(:hot_app, :vsn)
  }
  """

  defp files(instance) do
    for sub <- ["lib", "releases"], into: %{} do
      {sub, instance.root |> Path.join(sub) |> File.ls!() |> Enum.sort()}
    end
    |> Map.put(:start_erl, File.read!(Path.join(instance.root, "releases/start_erl.data")))
  end

  defp suspended(instance) do
    eval!(instance, """
    for pid <- Process.list(), {:current_function, {:sys, :suspend_loop_hib, _}} <- [Process.info(pid, :current_function)], do: pid
    """) ++
      eval!(instance, """
      for pid <- Process.list(), {:current_function, {:sys, :suspend_loop, _}} <- [Process.info(pid, :current_function)], do: pid
      """)
  end

  test "state is kept through three versions, and a restart boots the last", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    eval!(release, @workers)

    eval!(
      release,
      "HotApp.Counter.inc(); HotApp.Notes.add(:first); :gen_event.add_handler(HotApp.Events, HotApp.Handler, [])"
    )

    before = eval!(release, @snapshot)

    assert :ok = hot_upgrade(release, tarball("0.2.0", 2))
    second = eval!(release, @snapshot)

    # The same processes, in new code, told the real version they come from.
    assert Enum.map(second.workers, &elem(&1, 0)) == Enum.map(before.workers, &elem(&1, 0))

    assert for({_, {code, %{seen: seen}}} <- second.workers, do: {code, seen}) ==
             List.duplicate({2, 2}, 4)

    assert {_, {2, %{n: 1, from: ["counter-1"]}}} = second.counter
    assert {2, {:changed, :idle}, [2, 1]} = second.machine
    assert {2, [2]} = eval!(release, ":gen_event.call(HotApp.Events, HotApp.Handler, :get)")

    assert eval!(release, "HotApp.Notes.add(:second); HotApp.Notes.all()") == [
             {2, :second},
             {1, :first}
           ]

    # A module that was not there, in embedded mode, and a consolidated protocol.
    assert eval!(release, "GenServer.call(HotApp.Counter, :fresh)") == :fresh

    assert eval!(release, "Enum.map([1, :a, nil, %{}], &HotApp.Label.label/1)") == [
             {:integer, 2},
             :atom,
             :atom,
             :any
           ]

    assert eval!(release, "Protocol.consolidated?(HotApp.Label)")
    refute eval!(release, "Code.ensure_loaded?(HotApp.Gone)")
    # Where files are looked for, and what the node says of itself.
    assert eval!(release, "File.read!(Application.app_dir(:hot_app, \"priv/static/app.css\"))") ==
             "/* 0.2.0 */"

    assert second.vsn == ~c"0.2.0"
    assert eval!(release, "System.get_env(\"RELEASE_VSN\")") == "0.2.0"
    assert eval!(release, "Application.get_env(:hot_app, :shade)") == "dark"
    assert suspended(release) == []

    assert_logged(
      release,
      ~r/hot upgrade to version=0.2.0 done .* processes paused for [\d.]+ ms/
    )

    assert :ok = hot_upgrade(release, tarball("0.3.0", 3))
    assert {3, %{n: 1, from: ["counter-1", "counter-2"]}} = eval!(release, "HotApp.Counter.get()")

    assert {3, {:changed, {:changed, :idle}}, [3, 2, 1]} =
             eval!(release, ":gen_statem.call(HotApp.Machine, :get)")

    kill(release)
    release = boot(release)

    assert eval!(
             release,
             "{HotApp.Plain.code(), HotApp.Label.label(1), Application.spec(:hot_app, :vsn)}"
           ) == {3, {:integer, 3}, ~c"0.3.0"}

    assert {3, %{n: 0}} = eval!(release, "HotApp.Counter.get()")
  end

  test "a plan changes nothing and says what would", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    before = {eval!(release, @snapshot), files(release)}
    {:ok, plan} = eval!(release, "BeamDeploy.HotUpgrade.plan(#{inspect(tarball("0.2.0", 2))})")
    assert plan.recommendation == :hot
    assert plan.new == ["Elixir.HotApp.Fresh", "Elixir.HotApp.Label.Atom"]
    assert plan.removed == ["Elixir.HotApp.Gone"]
    assert plan.protocols == ["Elixir.HotApp.Label"]
    assert plan.files.changed == ["hot_app/priv/static/app.css"]
    assert plan.applications.changed == %{"hot_app" => {"0.1.0", "0.2.0"}}
    assert {eval!(release, @snapshot), files(release)} == before

    # The same as offline.
    {:ok, offline} = BeamDeploy.HotUpgrade.plan(tarball("0.2.0", 2), against: tarball("0.1.0", 1))
    assert %{offline | from: plan.from} == plan
  end

  describe "all is undone when a code_change" do
    for {variant, reason} <- [
          raise: "cannot convert",
          exit: "cannot_convert",
          error: "cannot_convert",
          hang: "timeout"
        ] do
      test "fails by #{variant}", %{tmp_dir: dir} do
        release = start(dir, tarball("0.1.0", 1))
        eval!(release, @workers)
        before = eval!(release, @snapshot)
        files = files(release)

        assert {:error, {:code_change_failed, %{processes: [failure], killed: killed}}} =
                 hot_upgrade(
                   release,
                   tarball("0.2.0", 2, unquote(variant)),
                   time_for(unquote(variant))
                 )

        assert failure.module == HotApp.Worker
        assert inspect(failure.reason) =~ unquote(reason)
        assert suspended(release) == []
        after_undo = eval!(release, @snapshot)

        # Nothing frees a process from an endless function: its supervisor would start it again.
        {kept, before_workers} =
          case unquote(variant) do
            :hang ->
              assert killed == [failure.pid]
              {after_undo.workers, List.keydelete(before.workers, failure.pid, 0)}

            _other ->
              assert killed == []
              {after_undo.workers, before.workers}
          end

        assert kept == before_workers
        assert Map.delete(after_undo, :workers) == Map.delete(before, :workers)
        assert files(release) == files
        assert eval!(release, "HotApp.Label.label(:a)") == :any

        # And the way is free for a version that is right.
        assert :ok = hot_upgrade(release, tarball("0.2.0", 2))
        assert {2, %{n: 0, from: ["counter-1"]}} = eval!(release, "HotApp.Counter.get()")
      end
    end

    test "takes longer than it may, but ends", %{tmp_dir: dir} do
      release = start(dir, tarball("0.1.0", 1))
      eval!(release, @workers)
      before = eval!(release, @snapshot)

      assert {:error, {:code_change_failed, %{processes: [%{reason: :timeout}], killed: []}}} =
               hot_upgrade(release, tarball("0.2.0", 2, :slow), code_change_timeout: 4_000)

      assert eval!(release, @snapshot) == before
    end
  end

  test "a process that dies while it is converted does not stop the others", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    eval!(release, @workers)
    assert :ok = hot_upgrade(release, tarball("0.2.0", 2, :die))

    assert [{2, %{seen: 2}}, {2, %{seen: 2}}, {2, %{seen: 2}}] =
             eval!(release, @states) |> Enum.map(&elem(&1, 1))
  end

  test "a process that cannot be suspended is named, and not left suspended", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    next = tarball("0.2.0", 2)
    eval!(release, @workers)
    before = eval!(release, @snapshot)
    files = files(release)
    {busy, _state} = Enum.find(before.workers, &match?({_, {1, %{id: 3}}}, &1))

    in_release = ":erlang.list_to_pid('#{:erlang.pid_to_list(busy)}')"
    other = connection(release)

    held = Task.async(fn -> eval!(other, "GenServer.call(#{in_release}, :hold, :infinity)") end)

    Wait.until(fn ->
      eval!(release, "Process.info(#{in_release}, :current_function)") ==
        {:current_function, {HotApp.Worker, :handle_call, 3}}
    end)

    assert {:error, {:suspend_failed, [^busy]}} =
             hot_upgrade(release, next, suspend_timeout: 5_000)

    # Its queue holds the message to suspend, and the one to resume.
    eval!(release, "send(#{in_release}, :go_on)")
    assert :ok = Wait.await(held)
    assert eval!(release, @snapshot) == before
    assert suspended(release) == []
    assert files(release) == files
    assert :ok = hot_upgrade(release, tarball("0.2.0", 2))
  end

  # A process that began in old code and went on in new without being converted would crash, or worse, and the other way
  # round. Where they are started by a supervisor, that is suspended with them.
  for {starter, start} <- [
        supervisor: "DynamicSupervisor.start_child(HotApp.Workers, {HotApp.Worker, n})",
        process: "GenServer.start(HotApp.Worker, n)"
      ],
      variant <- [:plain, :raise, :hang] do
    test "processes that a #{starter} starts meanwhile are of one version, #{variant}", %{
      tmp_dir: dir
    } do
      release = start(dir, tarball("0.1.0", 1))
      eval!(release, @workers)

      eval!(release, """
      defmodule HotApp.Starter do
        def loop(n) do
          {:ok, _} = #{unquote(start)}
          receive do
            {:stop, from} -> send(from, :stopped)
          after
            1 -> loop(n + 1)
          end
        end
      end

      for n <- [10, 1_000_000], do: :persistent_term.put({:starter, n}, spawn(HotApp.Starter, :loop, [n]))
      """)

      next = tarball("0.2.0", 2, unquote(variant))
      result = hot_upgrade(release, next, time_for(unquote(variant)))

      eval!(
        release,
        "for n <- [10, 1_000_000], do: (send(:persistent_term.get({:starter, n}), {:stop, self()}); receive do :stopped -> :ok end)"
      )

      assert expected?(unquote(starter), unquote(variant), result), inspect(result)

      seen =
        eval!(release, """
        for pid <- Process.list(), {:dictionary, dictionary} <- [Process.info(pid, :dictionary)],
            dictionary[:"$initial_call"] == {HotApp.Worker, :init, 1},
            {code, %{seen: seen}} = GenServer.call(pid, :get), uniq: true, do: {code, seen}
        """)

      assert seen == if(result == :ok, do: [{2, 2}], else: [{1, 1}])
      assert suspended(release) == []
    end
  end

  # What hangs is waited for in vain.
  defp time_for(:hang), do: [code_change_timeout: 5_000]
  defp time_for(_variant), do: []

  # With processes that begin all the time it may be in vain, but then it says so.
  defp expected?(:supervisor, :plain, result), do: result == :ok
  defp expected?(:process, :plain, :ok), do: true
  defp expected?(:process, _any, {:error, {:suspend_failed, [_ | _]}}), do: true
  defp expected?(_any, _fails, result), do: match?({:error, {:code_change_failed, _}}, result)

  test "processes in old code are never ended silently", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    holder = eval!(release, "spawn(HotApp.Plain, :hold, [])")

    ask =
      "send(:erlang.list_to_pid('#{:erlang.pid_to_list(holder)}'), {:code, self()}); receive do {:code, c} -> c after 10_000 -> :gone end"

    assert :ok = hot_upgrade(release, tarball("0.2.0", 2))
    assert eval!(release, ask) == 1
    before = eval!(release, @snapshot)
    assert {:error, {:old_code_in_use, [^holder]}} = hot_upgrade(release, tarball("0.3.0", 3))
    assert eval!(release, @snapshot) == before
    assert eval!(release, ask) == 1

    assert :ok = hot_upgrade(release, tarball("0.3.0", 3), force: true)
    assert eval!(release, ask) == :gone
    assert_logged(release, "ends processes in old code of [HotApp.Plain]")
  end

  test "what is not hot is refused with its reasons, a tarball without news says so", %{
    tmp_dir: dir
  } do
    release = start(dir, tarball("0.1.0", 1))
    before = {eval!(release, @snapshot), files(release)}
    assert {:error, :nothing_changed} = hot_upgrade(release, tarball("0.1.0", 1))

    assert {:error, {:not_hot, :blue_green, [applications_added: ["runtime_tools"]]}} =
             hot_upgrade(release, tarball("0.2.0", 2, :application))

    assert {:error, {:not_hot, :blue_green, [config_changed: ["sys.config"]]}} =
             hot_upgrade(release, tarball("0.2.0", 2, :config))

    assert {:error, {:not_hot, :blue_green, [supervision_changed: ["Elixir.HotApp.Top"]]}} =
             hot_upgrade(release, tarball("0.2.0", 2, :tree))

    assert {:error, {:invalid_release, {:other_app, _apps}}} =
             hot_upgrade(release, tarball("0.2.0", 2), otp_app: :another)

    assert {:error, :release_not_found} = hot_upgrade(release, "/no/such.tar.gz")
    assert {eval!(release, @snapshot), files(release)} == before

    # By force: the new application runs.
    assert :ok = hot_upgrade(release, tarball("0.2.0", 2, :application), force: true)

    assert eval!(
             release,
             "List.keymember?(Application.started_applications(), :runtime_tools, 0)"
           )
  end

  test "changed native code is skipped by force, and never loaded", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1, :native_before))

    assert {:error, {:not_hot, _, [native_code_changed: ["Elixir.HotApp.Native"]]}} =
             hot_upgrade(release, tarball("0.2.0", 2, :native))

    assert :ok = hot_upgrade(release, tarball("0.2.0", 2, :native), force: true)
    assert eval!(release, "{HotApp.Native.code(), HotApp.Plain.code()}") == {1, 2}
    assert_logged(release, "skipped Elixir.HotApp.Native")
  end

  test "a new module with native code is loaded", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    assert :ok = hot_upgrade(release, tarball("0.2.0", 2, :native))
    assert eval!(release, "HotApp.Native.code()") == 2
  end

  test "supervisors follow their new specs on request", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))

    [leaves, stays] =
      eval!(release, "Enum.map([HotApp.Leaves, HotApp.Stays], &Process.whereis/1)")

    assert is_pid(leaves)
    assert :ok = hot_upgrade(release, tarball("0.2.0", 2, :tree), supervisors: true)

    assert [nil, ^stays, added] =
             eval!(
               release,
               "Enum.map([HotApp.Leaves, HotApp.Stays, HotApp.Added], &Process.whereis/1)"
             )

    assert is_pid(added)
    assert eval!(release, "Supervisor.count_children(HotApp.Top).specs") == 2
  end

  test "configuration is taken over on request, its providers run", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1), %{"HOT_SHADE" => "pale"})
    eval!(release, "Application.put_env(:hot_app, :set_at_runtime, 1)")
    assert :ok = hot_upgrade(release, tarball("0.2.0", 2, :config), config: true)

    assert eval!(release, "Application.get_all_env(:hot_app) |> Enum.sort()") ==
             [color: "blue", set_at_runtime: 1, shade: "pale"]

    assert {changed, _new, removed} =
             eval!(release, ":persistent_term.get(:hot_app_config_change)")

    assert changed == [color: "blue"]
    assert removed == [:only_before]
  end

  test "one upgrade at a time; the caller may go away", %{tmp_dir: dir} do
    # Built before, since that takes longer than the upgrade.
    second = tarball("0.2.0", 2)
    release = start(dir, tarball("0.1.0", 1))
    eval!(release, @workers)

    run =
      "BeamDeploy.HotUpgrade.run(#{inspect(tarball("0.2.0", 2, :slow))}, otp_app: :hot_app, code_change_timeout: 60_000)"

    # The caller is killed as soon as the upgrade is under way.
    eval!(release, """
    caller = spawn(fn -> #{run} end)
    wait = fn wait -> if Process.whereis(BeamDeploy.HotUpgrade), do: :ok, else: (Process.sleep(1); wait.(wait)) end
    wait.(wait)
    Process.exit(caller, :kill)
    """)

    assert {:error, :upgrade_in_progress} = hot_upgrade(release, second)
    Wait.until(fn -> eval!(release, "Process.whereis(BeamDeploy.HotUpgrade)") == nil end)
    assert {2, _} = eval!(release, "HotApp.Counter.get()")
    assert suspended(release) == []
  end

  # The answer to whoever asked for an upgrade whose own process is killed once each of the conditions has held in turn.
  # Expressions for what comes before and after that know the workers as `converted` and `busy`.
  defp killed_upgrade(release, tarball, options, conditions, more \\ []) do
    options = Keyword.put(options, :otp_app, :hot_app)
    conditions = Enum.map_join(conditions, ", ", &"fn -> #{&1} end")

    eval!(release, """
    me = self()
    [converted, busy] = for id <- [2, 3], {_, pid, _, _} <- DynamicSupervisor.which_children(HotApp.Workers), match?(%{id: ^id}, :sys.get_state(pid)), do: pid
    #{more[:before]}
    spawn(fn -> send(me, {:result, BeamDeploy.HotUpgrade.run(#{inspect(tarball)}, #{inspect(options)})}) end)
    wait = fn wait, condition -> if condition.(), do: :ok, else: (Process.sleep(1); wait.(wait, condition)) end
    for condition <- [#{conditions}], do: wait.(wait, condition)
    Process.exit(Process.whereis(BeamDeploy.HotUpgrade), :kill)
    #{more[:afterwards]}
    _ = {converted, busy}
    receive do {:result, result} -> result end
    """)
  end

  # With what the upgrade waits for while it is to be killed.
  for {step, variant, running} <- [
        {"states are converted", :slow,
         "match?({:current_function, {Process, :sleep, 1}}, Process.info(converted, :current_function))"},
        {"it waits for a busy process", :plain,
         "match?({:current_function, {:sys, :suspend_loop, _}}, Process.info(Process.whereis(HotApp.Counter), :current_function))"}
      ] do
    test "all is undone when the upgrade itself is killed while #{step}", %{tmp_dir: dir} do
      release = start(dir, tarball("0.1.0", 1))
      eval!(release, @workers)
      before = eval!(release, @snapshot)
      files = files(release)

      busy? = unquote(variant) == :plain

      assert {:error, {:crashed, :killed}} =
               killed_upgrade(
                 release,
                 tarball("0.2.0", 2, unquote(variant)),
                 [code_change_timeout: 60_000, suspend_timeout: 60_000],
                 [unquote(running)],
                 before: if(busy?, do: ":gen_server.send_request(busy, :hold)"),
                 afterwards: if(busy?, do: "send(busy, :go_on)")
               )

      assert eval!(release, @snapshot) == before
      assert suspended(release) == []
      assert files(release) == files
      assert :ok = hot_upgrade(release, tarball("0.3.0", 3))
      assert {3, %{from: ["counter-1"]}} = eval!(release, "HotApp.Counter.get()")
    end
  end

  test "an undo is done once, whatever becomes of the upgrade meanwhile", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    eval!(release, @workers)
    before = eval!(release, @snapshot)
    files = files(release)

    # Killed once the old code is back, while the one that hangs is waited for.
    assert {:error, {:crashed, :killed}} =
             killed_upgrade(
               release,
               tarball("0.2.0", 2, :hang),
               [code_change_timeout: 3_000],
               ["HotApp.Plain.code() == 2", "HotApp.Plain.code() == 1"]
             )

    after_undo = eval!(release, @snapshot)
    assert Map.delete(after_undo, :workers) == Map.delete(before, :workers)
    assert length(after_undo.workers) == length(before.workers) - 1
    assert suspended(release) == []
    assert files(release) == files
    assert_logged(release, "could not go back with it were ended")
    assert :ok = hot_upgrade(release, tarball("0.2.0", 2))
  end

  test "killed after its commit it is done, and says what was cut off", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    eval!(release, @workers)

    assert :ok =
             killed_upgrade(release, tarball("0.2.0", 2, :lingers), [config: true], [
               ":persistent_term.get(:lingers, false)"
             ])

    assert {2, _} = eval!(release, "HotApp.Counter.get()")
    assert suspended(release) == []
    assert_logged(release, "hot upgrade is done, but its refresh failed: {:crashed, :killed}")
    kill(release)
    assert {2, _} = release |> boot() |> eval!("HotApp.Counter.get()")
  end

  test "a directory of the code path that is not there is no obstacle, forth and back", %{
    tmp_dir: dir
  } do
    release =
      start(dir, tarball("0.1.0", 1), %{"ERL_FLAGS" => "-pa #{Path.join(dir, "patches")}"})

    eval!(release, @workers)
    before = eval!(release, @snapshot)

    assert {:error, {:code_change_failed, _details}} =
             hot_upgrade(release, tarball("0.2.0", 2, :raise))

    assert Map.delete(eval!(release, @snapshot), :path) == Map.delete(before, :path)
    assert suspended(release) == []
    assert :ok = hot_upgrade(release, tarball("0.2.0", 2))
    assert {2, _} = eval!(release, "HotApp.Counter.get()")
  end

  test "by force to another runtime system, the next start finds it", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    other = other_runtime_system(tarball("0.2.0", 2), dir)

    assert {:error, {:not_hot, :blue_green, [{:erts_changed, _, _}]}} =
             hot_upgrade(release, other)

    assert :ok = hot_upgrade(release, other, force: true)
    assert eval!(release, "HotApp.Plain.code()") == 2
    kill(release)
    release = boot(release)
    assert eval!(release, "HotApp.Plain.code()") == 2
    assert eval!(release, "System.get_env(\"BINDIR\")") =~ "-other"
  end

  # The same one under another version.
  defp other_runtime_system(tarball, dir) do
    root = Path.join(dir, "other")
    :ok = :erl_tar.extract(tarball, [:compressed, cwd: String.to_charlist(root)])
    [erts] = Path.wildcard(Path.join(root, "erts-*"))
    version = String.replace_prefix(Path.basename(erts), "erts-", "")
    File.rename!(erts, erts <> "-other")

    for directory <- ["bin", "releases", "releases/0.2.0"],
        path <- Path.wildcard(Path.join([root, directory, "*"])),
        File.regular?(path),
        text = File.read!(path),
        String.valid?(text),
        String.contains?(text, version) do
      mode = File.stat!(path).mode
      File.write!(path, String.replace(text, version, version <> "-other"))
      File.chmod!(path, mode)
    end

    path = Path.join(dir, "other.tar.gz")

    {_, 0} = System.cmd("tar", ["czf", path, "-C", root | File.ls!(root)])

    path
  end

  test "a state machine that is to be called in another way is refused while all can be undone",
       %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    eval!(release, @workers)
    before = eval!(release, @snapshot)

    assert {:error, {:load_failed, [{HotApp.Machine, :callback_mode_changed}]}} =
             hot_upgrade(release, tarball("0.2.0", 2, :mode))

    assert eval!(release, @snapshot) == before
    assert suspended(release) == []
    assert :ok = hot_upgrade(release, tarball("0.2.0", 2))
  end

  test "two releases of one version are told apart, on disk too", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    assert :ok = hot_upgrade(release, tarball("0.1.0", 2))
    assert {2, _} = eval!(release, "HotApp.Counter.get()")
    kill(release)
    release = boot(release)

    assert eval!(
             release,
             "{HotApp.Plain.code(), HotApp.Label.label(:a), Application.get_env(:hot_app, :shade)}"
           ) == {2, :atom, "dark"}

    assert :ok = hot_upgrade(release, tarball("0.1.0", 3))
    kill(release)
    release = boot(release)
    assert eval!(release, "HotApp.Plain.code()") == 3
    # And back.
    assert :ok = hot_upgrade(release, tarball("0.1.0", 1), force: true)
    kill(release)
    release = boot(release)
    assert eval!(release, "{HotApp.Plain.code(), HotApp.Label.label(:a)}") == {1, :any}
  end

  test "killed at any instant, the next start runs one version, whole", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))
    next = tarball("0.2.0", 2)
    previous = tarball("0.1.0", 1)
    :rand.seed(:exsss, {4, 5, 6})
    kills = String.to_integer(System.get_env("BEAM_DEPLOY_KILLS", "8"))

    {_release, seen} =
      Enum.reduce(1..kills, {release, []}, fn _round, {release, seen} ->
        [now] = eval!(release, "[HotApp.Plain.code()]")
        {tarball, force} = if now == 1, do: {next, false}, else: {previous, true}

        :ok =
          :gen_tcp.send(
            release.socket,
            "BeamDeploy.HotUpgrade.run(#{inspect(tarball)}, otp_app: :hot_app, force: #{force})"
          )

        # The whole of it takes some 400 ms.
        Process.sleep(:rand.uniform(900))
        kill(release)
        release = boot(release)

        # What runs is one version, in code, protocol, application data and files.
        code = eval!(release, "HotApp.Plain.code()")
        version = if code == 1, do: ~c"0.1.0", else: ~c"0.2.0"
        label = if code == 1, do: :any, else: :atom
        css = "/* #{version} */"

        assert eval!(
                 release,
                 "{HotApp.Label.label(:a), Application.spec(:hot_app, :vsn), File.read!(Application.app_dir(:hot_app, \"priv/static/app.css\")), Code.ensure_loaded?(HotApp.Fresh)}"
               ) ==
                 {label, version, css, code == 2}

        {release, [code | seen]}
      end)

    # Of many, some came to their end and some did not.
    if kills >= 20, do: assert(1 in seen and 2 in seen)
  end

  # Only root may mount a file system.
  if Root.root?() do
    test "on a full disk nothing has changed, and the space is given back", %{tmp_dir: dir} do
      mount = Path.join(dir, "mount")
      :ok = Root.mount_disk(mount, "size=80m")
      release = start(mount, tarball("0.1.0", 1))
      before = {eval!(release, @snapshot), files(release)}

      free = fn ->
        {output, 0} = System.cmd("df", ["-k", "--output=avail", mount])
        output |> String.split() |> List.last() |> String.to_integer()
      end

      filler = Path.join(mount, "filler")
      File.write!(filler, :binary.copy(<<0>>, (free.() - 60) * 1024))
      left = free.()
      assert {:error, {:extract_failed, :enospc}} = hot_upgrade(release, tarball("0.2.0", 2))
      assert {eval!(release, @snapshot), files(release)} == before
      assert_in_delta free.(), left, 60
      File.rm!(filler)
      assert :ok = hot_upgrade(release, tarball("0.2.0", 2))
      kill(release)
    end
  end

  test "10,000 processes of a changed module", %{tmp_dir: dir} do
    release = start(dir, tarball("0.1.0", 1))

    eval!(
      release,
      "for id <- 10..10_009, do: {:ok, _} = DynamicSupervisor.start_child(HotApp.Workers, {HotApp.Worker, id}); :ok"
    )

    assert :ok = hot_upgrade(release, tarball("0.2.0", 2))

    assert eval!(
             release,
             "#{@states} |> Enum.frequencies_by(fn {_, {code, %{seen: seen}}} -> {code, seen} end)"
           ) ==
             %{{2, 2} => 10_000}

    assert suspended(release) == []
    # And one of them fails.
    eval!(release, "DynamicSupervisor.start_child(HotApp.Workers, {HotApp.Worker, 2})")

    assert {:error, {:code_change_failed, %{processes: [_], killed: []}}} =
             hot_upgrade(release, tarball("0.3.0", 3, :raise))

    frequencies =
      eval!(
        release,
        "#{@states} |> Enum.frequencies_by(fn {_, {code, %{seen: seen}}} -> {code, seen} end)"
      )

    assert frequencies == %{{2, 2} => 10_001}
    assert suspended(release) == []
    HotRelease.kill(release)
  end
end
