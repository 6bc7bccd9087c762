defmodule BeamDeploy.Integration.SwapTest do
  # The main job on real releases: what an operator does, and what a peer is.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Instance
  import BeamDeploy.Test.LogFile
  alias BeamDeploy.Test.{Http, SampleRelease, Wait}

  @moduletag :tmp_dir
  @moduletag :integration

  test "an upgrade replaces the peer and nothing else", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    parent = parent_os_pid(instance)
    blue = peer_os_pid(instance)
    assert version(instance) == "0.1.0"

    assert eval!(instance, "BeamDeploy.status()") == %{
             active_node: :"#{instance.name}_blue@127.0.0.1",
             upgrading: false
           }

    assert {output, 0} =
             rpc(
               instance,
               "IO.inspect BeamDeploy.upgrade!(#{inspect(SampleRelease.tarball("0.2.0"))})"
             )

    assert output =~ ":ok"

    assert version(instance) == "0.2.0"
    green = peer_os_pid(instance)
    assert green != blue
    # The old one is gone when upgrade/1 returns.
    assert Enum.sort(os_pids(instance)) == Enum.sort([parent, green])

    assert eval!(instance, "BeamDeploy.status()") == %{
             active_node: :"#{instance.name}_green@127.0.0.1",
             upgrading: false
           }

    assert eval!(instance, "{BeamDeploy.peer_node(), BeamDeploy.upgrading?()}") ==
             {:"#{instance.name}_green@127.0.0.1", false}

    info = eval!(instance, "BeamDeploy.info()")
    assert %{base: %{version: "0.1.0"}, current: %{version: "0.2.0", sha256: <<_::512>>}} = info
    assert [%{version: "0.2.0", side: :green, os_pid: ^green}] = info.peers

    assert %{mode: :steered, active: :green, addresses: [%{ip: {127, 0, 0, 1}, sides: [:green]}]} =
             info.listeners

    assert Keyword.keys(info.last_swap.phases) == [
             :verify,
             :stage,
             :boot,
             :health,
             :cutover,
             :drain,
             :stop,
             :finish
           ]

    for phase <- Keyword.keys(info.last_swap.phases), do: assert_logged(instance, "swap #{phase}")

    # And back: the sides and their node names are used again.
    assert upgrade(instance, SampleRelease.tarball("0.1.0")) == :ok
    assert version(instance) == "0.1.0"
    assert eval!(instance, "BeamDeploy.peer_node()") == :"#{instance.name}_blue@127.0.0.1"
    assert length(os_pids(instance)) == 2
  end

  test "a peer boots as bin/sample start of its release would", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir, environment: %{"SAMPLE_FROM_OPERATOR" => "set outside"})
    assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
    root = eval!(instance, "BeamDeploy.info().current.root")

    assert Path.dirname(root) == Path.join(instance.store, "releases")

    application = eval_in_peer!(instance, "Application.get_all_env(:sample)")
    assert application[:from_config] == "from config.exs"
    assert application[:from_runtime] == "from runtime.exs in prod"
    assert application[:from_provider] == "from the provider"

    environment = eval_in_peer!(instance, "System.get_env()")
    assert environment["SAMPLE_FROM_ENV_SH"] == "version 0.2.0"
    assert environment["SAMPLE_FROM_VM_ARGS"] == "yes"
    assert environment["SAMPLE_FROM_OPERATOR"] == "set outside"
    assert environment["RELEASE_VSN"] == "0.2.0"
    assert environment["RELEASE_ROOT"] == root
    assert environment["RELEASE_VM_ARGS"] == Path.join(root, "releases/0.2.0/vm.args")
    assert environment["RELEASE_SYS_CONFIG"] == Path.join(root, "releases/0.2.0/sys")
    assert environment["RELEASE_TMP"] == instance.environment["RELEASE_TMP"]
    assert environment["RELEASE_NODE"] == "#{instance.name}_green@127.0.0.1"

    # Programs that the app starts are no peers.
    refute Enum.any?(environment, fn {name, _value} ->
             name in ["BEAM_DEPLOY_PARENT", "BEAM_DEPLOY_SOCKET"]
           end)

    # Its own runtime system and code, loaded before it serves, in a mode that still finds new modules.
    assert List.to_string(eval_in_peer!(instance, ":code.root_dir()")) == root

    assert List.to_string(eval_in_peer!(instance, ":code.which(Sample.Http)")) =~
             Path.join(root, "lib/sample-0.2.0")

    assert eval_in_peer!(
             instance,
             ":erlang.module_loaded(:orddict) and :erlang.module_loaded(Range)"
           )

    assert eval_in_peer!(instance, ":code.get_mode()") == :interactive
  end

  test "the cookie is on no peer's command line", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    cookie = File.read!(Path.join(instance.root, "releases/COOKIE"))
    assert eval_in_peer!(instance, "Node.get_cookie()") == String.to_atom(cookie)
    [peer] = peer_os_pids(instance)
    refute File.read!("/proc/#{peer}/cmdline") =~ cookie
  end

  test "what a peer prints is in the parent's output, whatever it is", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)

    for version <- ["0.2.0", "0.1.0"] do
      assert upgrade(instance, SampleRelease.tarball(version)) == :ok
      eval_in_peer!(instance, ~s|IO.puts(:user, "é to standard output of #{version}")|)

      eval_in_peer!(
        instance,
        ~s|:erpc.cast(node(), :erlang, :display_string, [~c"raw \\xc3\\xa9 of #{version}\\n"])|
      )

      eval_in_peer!(instance, ~s|IO.puts(:standard_error, "to standard error of #{version}")|)

      # A process with a group leader on another node is left to that node's log, from Elixir 1.15 on.
      eval_in_peer!(
        instance,
        ~s|Process.group_leader(self(), Process.whereis(:user)); require Logger; Logger.error("logged by #{version}")|
      )

      Wait.until(
        fn ->
          log = log(instance)

          Enum.all?(
            ["é to standard output of", "raw ", "to standard error of", "logged by"],
            &(log =~ &1 and log =~ version)
          )
        end,
        otherwise: fn -> log(instance) end
      )

      # Bytes that `:peer` would take for its own protocol have not hung the peer.
      assert version(instance) == version
      assert eval_in_peer!(instance, ~s|IO.puts(:user, "still printing")|) == :ok
    end
  end

  test "programs that have a peer's standard output print what they like", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)

    for version <- ["0.1.0", "0.2.0"] do
      if version(instance) != version,
        do: assert(upgrade(instance, SampleRelease.tarball(version)) == :ok)

      peer = peer_os_pid(instance)

      # The second line is a message of `:peer`'s protocol, with nothing in it.
      for bytes <- [~S"\303\251", String.duplicate(~S"\303", 16), ~S"\377\000\200"] do
        command = ~s(printf '#{bytes} inherited by #{version} %s\\n' end)
        assert eval_in_peer!(instance, "Sample.Shell.run(#{inspect(command)})") == 0
      end

      Wait.until(
        fn -> ~r/inherited by #{version} end/ |> Regex.scan(log(instance)) |> length() == 3 end,
        otherwise: fn -> log(instance) end
      )

      assert log(instance) =~ "é inherited by #{version} end\n"
      assert version(instance) == version
      assert peer_os_pid(instance) == peer
      assert peer in os_pids(instance)
    end
  end

  test "what env.sh and programs that are started at boot print is no obstacle", %{
    tmp_dir: tmp_dir
  } do
    instance = start(tmp_dir)
    assert upgrade(instance, SampleRelease.tarball("0.2.0", :prints)) == :ok
    assert version(instance) == "0.2.0"
    assert_logged(instance, "démarrage: été\n")
    assert_logged(instance, String.duplicate("Ã", 40) <> " by a program\n")
  end

  test "a release that boots once more after its config providers", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir, variant: :reboots)

    for version <- ["0.1.0", "0.2.0"] do
      if version(instance) != version,
        do: assert(upgrade(instance, SampleRelease.tarball(version, :reboots)) == :ok)

      assert version(instance) == version
      application = eval_in_peer!(instance, "Application.get_all_env(:sample)")
      assert application[:from_config] == "from config.exs"
      assert application[:from_runtime] == "from runtime.exs in prod"
      assert application[:from_provider] == "from the provider"
    end

    # And to and from one that does not.
    assert upgrade(instance, SampleRelease.tarball("0.1.0")) == :ok
    assert version(instance) == "0.1.0"
  end

  test "values and states cross a swap", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    for _ <- 1..3, do: version(instance)
    counted = eval_in_peer!(instance, "Sample.Counter.value()")
    eval!(instance, ~s|BeamDeploy.put_handoff(:stale, "of an earlier swap")|)
    assert eval_in_peer!(instance, "BeamDeploy.get_handoff(:stale)") == "of an earlier swap"

    assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok

    # put_handoff in terminate/2 of the old peer; what was there before the swap is gone.
    assert eval_in_peer!(instance, "BeamDeploy.get_all_handoff()") == %{count: counted}
    assert eval!(instance, "BeamDeploy.get_handoff(:count)") == counted

    # before_cutover ran after all processes had ended, and its result reached after_cutover.
    blue = :"#{instance.name}_blue@127.0.0.1"
    green = :"#{instance.name}_green@127.0.0.1"

    assert eval_in_peer!(instance, ":persistent_term.get(:after_cutover)") ==
             {:counted, counted, blue, green}

    assert eval_in_peer!(instance, "{BeamDeploy.incoming_peer(), BeamDeploy.outgoing_peer()}") ==
             {nil, nil}
  end

  test "during a swap both peers know of each other, and the parent answers", %{tmp_dir: tmp_dir} do
    tarball = SampleRelease.tarball("0.2.0")
    instance = start(tmp_dir)
    blue = :"#{instance.name}_blue@127.0.0.1"
    green = :"#{instance.name}_green@127.0.0.1"
    file = Path.join(tmp_dir, "answer")
    slow = held_request(instance, file)

    upgrade = Task.async(fn -> upgrade(instance, tarball) end)
    Wait.until(fn -> version(instance) == "0.2.0" end)

    # The old peer is still at its request, and the parent hears of the cutover a moment after clients do.
    Wait.until(fn ->
      eval!(instance, "BeamDeploy.status()") == %{active_node: green, upgrading: true}
    end)

    assert eval_in_peer!(instance, "BeamDeploy.outgoing_peer()") == blue
    assert eval!(instance, ":erpc.call(:\"#{blue}\", BeamDeploy, :incoming_peer, [])") == green
    assert upgrade(instance, SampleRelease.tarball("0.1.0")) == {:error, :upgrade_in_progress}

    # Members of one cluster, to which the parent does not belong.
    Wait.until(fn -> eval_in_peer!(instance, "Node.list()") == [blue] end)
    assert eval!(instance, ":erpc.call(:\"#{blue}\", Node, :list, [])") == [green]
    assert eval!(instance, "Node.list()") == []
    assert [blue, green] -- eval!(instance, "Node.list(:hidden)") == []

    File.touch!(file)
    assert {:ok, %{status: 200, body: "0.1.0"}} = Wait.await(slow)
    assert Wait.await(upgrade) == :ok
    assert length(os_pids(instance)) == 2
  end

  test "connections of listeners of one's own are waited for, for as long as it takes or may take",
       %{
         tmp_dir: tmp_dir
       } do
    for {drain_timeout, waits?} <- [{30_000, true}, {200, false}] do
      directory = Path.join(tmp_dir, "#{drain_timeout}")
      File.mkdir_p!(directory)
      tarball = SampleRelease.tarball("0.2.0")
      instance = start(directory, start_options: [drain_timeout: drain_timeout])
      file = Path.join(directory, "answer")
      slow = held_request(instance, file)

      upgrade = Task.async(fn -> upgrade(instance, tarball) end)
      Wait.until(fn -> version(instance) == "0.2.0" end)
      overdue = "connections of listeners that the application opened had not ended in time"

      if waits?,
        do: refute(Task.yield(upgrade, 1_000)),
        else: assert_logged(instance, overdue)

      # Cut by nobody: its supervisor gives it a minute.
      File.touch!(file)
      assert {:ok, %{status: 200, body: "0.1.0"}} = Wait.await(slow)
      assert Wait.await(upgrade) == :ok
      assert log(instance) =~ overdue == not waits?
    end
  end

  test "a request may ask for the swap that ends its own peer", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    tarball = SampleRelease.tarball("0.2.0")
    # A peer answers a moment before its parent is told that it serves.
    Wait.until(fn -> eval!(instance, "BeamDeploy.peer_node()") != nil end)

    assert {:ok, %{body: ":ok", headers: %{"x-version" => "0.1.0"}}} =
             Http.get(instance.port, "/upgrade?#{URI.encode(tarball)}")

    assert version(instance) == "0.2.0"
    Wait.until(fn -> length(os_pids(instance)) == 2 end)
    Wait.until(fn -> eval!(instance, "BeamDeploy.status()").upgrading == false end)
  end

  test "a caller that is gone does not stop the swap it asked for", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    tarball = SampleRelease.tarball("0.2.0")

    eval!(
      instance,
      "spawn(fn -> Process.exit(spawn(fn -> BeamDeploy.upgrade(#{inspect(tarball)}) end), :kill) end)"
    )

    eval!(instance, """
    caller = spawn(fn -> BeamDeploy.upgrade(#{inspect(tarball)}) end)
    wait = fn wait -> unless BeamDeploy.upgrading?(), do: wait.(wait) end
    wait.(wait)
    Process.exit(caller, :kill)
    """)

    Wait.until(fn ->
      eval!(instance, "BeamDeploy.status()") == %{
        active_node: :"#{instance.name}_green@127.0.0.1",
        upgrading: false
      }
    end)

    assert version(instance) == "0.2.0"
  end

  test "parent-level children live through swaps", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)

    find = """
    [{:children, pid, _, _}] = Enum.filter(Supervisor.which_children(BeamDeploy.Supervisor), &(elem(&1, 0) == :children))
    [{:parent_level, child, _, _}] = Supervisor.which_children(pid)
    Agent.get(child, & &1)
    """

    started = eval!(instance, find)
    assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
    assert eval!(instance, find) == started
  end

  test "a release without its own runtime system runs on the machine's", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    assert upgrade(instance, SampleRelease.tarball("0.2.0", :without_erts)) == :ok
    assert version(instance) == "0.2.0"

    refute eval_in_peer!(instance, ":code.root_dir()")
           |> List.to_string()
           |> String.starts_with?(instance.store)
  end

  test "nodes may be hidden, have short names, and but one port of distribution", %{
    tmp_dir: tmp_dir
  } do
    port = Http.free_port()
    name = "short#{System.pid()}"

    instance =
      start(tmp_dir,
        name: name,
        environment: %{
          "ELIXIR_ERL_OPTIONS" =>
            "-hidden -kernel inet_dist_listen_min #{port} inet_dist_listen_max #{port}",
          "RELEASE_DISTRIBUTION" => "sname",
          "RELEASE_NODE" => name
        }
      )

    # Without bin/sample rpc, whose own node would need a port as well.
    [blue] = peer_os_pids(instance)
    tarball = SampleRelease.tarball("0.2.0")

    # A peer answers a moment before its parent is told that it serves.
    Wait.until(fn ->
      match?({:ok, %{body: ":ok"}}, Http.get(instance.port, "/upgrade?#{URI.encode(tarball)}"))
    end)

    assert version(instance) == "0.2.0"
    Wait.until(fn -> length(os_pids(instance)) == 2 and blue not in os_pids(instance) end)
  end

  test "switched off, the release runs as if BeamDeploy were not there", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir, environment: %{"BEAM_DEPLOY" => "off"})
    assert version(instance) == "0.1.0"
    assert length(os_pids(instance)) == 1

    assert eval!(
             instance,
             "{BeamDeploy.status(), BeamDeploy.upgrade(\"/x\"), BeamDeploy.put_handoff(:a, 1), BeamDeploy.get_handoff(:a), BeamDeploy.get_all_handoff(), BeamDeploy.info()}"
           ) ==
             {%{active_node: nil, upgrading: false}, {:error, :not_running}, :ok, nil, %{}, %{}}
  end
end
