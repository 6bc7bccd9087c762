defmodule BeamDeploy.Integration.SurviveTest do
  # What was deployed survives: restarts of the parent, rollbacks, releases that break after their swap.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Instance
  import BeamDeploy.Test.LogFile
  alias BeamDeploy.Test.{Http, SampleRelease, Wait}

  @moduletag :tmp_dir
  @moduletag :integration

  defp deployed(tmp_dir, options \\ []) do
    instance = start(tmp_dir, options)
    assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
    instance
  end

  defp stop(instance, signal) do
    signal(parent_os_pid(instance), signal)
    await_exit(instance)
    Wait.until(fn -> os_pids(instance) == [] end)
  end

  defp current_root(instance), do: eval!(instance, "BeamDeploy.info().current.root")

  defp history(instance) do
    for entry <- eval!(instance, "BeamDeploy.history()") do
      assert %DateTime{} = entry.at
      version = fn id -> id && elem(id, 0) end
      {entry.kind, version.(entry.from), version.(entry.to), entry.outcome}
    end
  end

  describe "a parent that starts again serves what was deployed last" do
    test "after kill -9 and after SIGTERM", %{tmp_dir: tmp_dir} do
      instance = deployed(tmp_dir)

      instance =
        Enum.reduce(["KILL", "TERM"], instance, fn signal, instance ->
          stop(instance, signal)
          instance = restart(instance)
          assert version(instance) == "0.2.0"
          assert eval!(instance, "BeamDeploy.info().base.version") == "0.1.0"
          assert length(staged(instance)) == 1
          instance
        end)

      # And it goes on from there.
      assert eval!(instance, "BeamDeploy.rollback()") == :ok
      assert version(instance) == "0.1.0"
    end

    test "but a new base replaces it", %{tmp_dir: tmp_dir} do
      instance = deployed(tmp_dir)
      stop(instance, "TERM")
      instance = restart(%{instance | root: SampleRelease.unpacked("0.3.0")})
      assert version(instance) == "0.3.0"
      assert staged(instance) == []
      assert {:boot, "0.2.0", "0.3.0", :ok} = hd(history(instance))
      assert eval!(instance, "BeamDeploy.rollback()") == {:error, :no_previous_release}
    end

    test "or what served before, when its directory is damaged", %{tmp_dir: tmp_dir} do
      instance = deployed(tmp_dir)
      root = current_root(instance)
      stop(instance, "KILL")
      File.rm!(Path.join(root, "releases/0.2.0/start.boot"))
      restart(instance)
      assert version(instance) == "0.1.0"
      assert_logged(instance, "release 0.2.0 does not boot")
      assert {:boot, nil, "0.2.0", {:error, why}} = hd(history(instance))
      assert why =~ "enoent"
      # For this start only: it may be repaired.
      assert eval!(instance, "BeamDeploy.rollback()") == {:error, {:already_current, "0.1.0"}}

      assert {:error, {:damaged_release, "0.2.0"}} =
               eval!(instance, ~s|BeamDeploy.rollback("0.2.0")|)

      # What comes next goes back to what served, not to what is damaged.
      assert upgrade(instance, SampleRelease.tarball("0.3.0")) == :ok
      assert eval!(instance, "BeamDeploy.rollback()") == :ok
      assert version(instance) == "0.1.0"
    end

    test "or what served before, when it is gone", %{tmp_dir: tmp_dir} do
      instance = deployed(tmp_dir)
      root = current_root(instance)
      stop(instance, "KILL")
      File.rm_rf!(root)
      restart(instance)
      assert version(instance) == "0.1.0"
      assert_logged(instance, "is gone from the store")
    end
  end

  describe "a release whose files are gone from the store" do
    test "is repaired by its tarball, also after a restart", %{tmp_dir: tmp_dir} do
      instance = deployed(tmp_dir)
      script = Path.join(current_root(instance), "releases/0.2.0/env.sh")
      assert eval!(instance, "BeamDeploy.rollback()") == :ok
      File.rm!(script)

      assert eval!(instance, "BeamDeploy.rollback()") == {:error, {:damaged_release, "0.2.0"}}
      assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
      assert version(instance) == "0.2.0"
      assert File.regular?(script)

      stop(instance, "KILL")
      restart(instance)
      assert version(instance) == "0.2.0"
      assert length(staged(instance)) == 1
    end

    test "all of them keeps nobody from deploying, or from looking", %{tmp_dir: tmp_dir} do
      instance = deployed(tmp_dir)
      File.rm_rf!(current_root(instance))

      assert ["0.1.0"] =
               for(release <- eval!(instance, "BeamDeploy.info().releases"), do: release.version)

      assert upgrade(instance, SampleRelease.tarball("0.3.0")) == :ok
      assert version(instance) == "0.3.0"
    end
  end

  describe "an after_cutover that hangs" do
    test "does not bring the old version back at the next start", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)
      tarball = SampleRelease.tarball("0.2.0", :after_cutover_hangs)
      Task.start(fn -> rpc(instance, "BeamDeploy.upgrade(#{inspect(tarball)})") end)
      # By when the store has it, the hook runs or is about to.
      Wait.until(fn -> match?([{:blue_green, "0.1.0", "0.2.0", :ok}], history(instance)) end)
      assert eval!(instance, "BeamDeploy.upgrading?()")
      stop(instance, "KILL")
      restart(instance)
      assert version(instance) == "0.2.0"
    end

    test "is waited for no longer than for a boot", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir, start_options: [boot_timeout: 30_000])
      assert upgrade(instance, SampleRelease.tarball("0.2.0", :after_cutover_hangs)) == :ok
      assert_logged(instance, "after_cutover has not returned within 30000 ms")
      assert eval!(instance, "BeamDeploy.rollback()") == :ok
      assert version(instance) == "0.1.0"
    end
  end

  describe "a rollback" do
    test "goes back, forward again, and to any version, from the parent and from a peer", %{
      tmp_dir: tmp_dir
    } do
      instance = deployed(tmp_dir)
      assert upgrade(instance, SampleRelease.tarball("0.3.0")) == :ok

      assert {output, 0} = rpc(instance, "BeamDeploy.rollback!()")

      for phase <- ~w(verify stage boot health cutover drain stop finish done),
          do: assert(output =~ phase)

      assert output =~ "0.3.0 -> 0.2.0"
      assert version(instance) == "0.2.0"

      assert eval!(instance, "BeamDeploy.rollback()") == :ok
      assert version(instance) == "0.3.0"
      assert eval!(instance, ~s|BeamDeploy.rollback("0.1.0")|) == :ok

      assert {version(instance), eval!(instance, "BeamDeploy.current_vsn()")} ==
               {"0.1.0", "0.1.0"}

      assert eval_in_peer!(instance, ~s|BeamDeploy.rollback("0.2.0")|) == :ok
      assert version(instance) == "0.2.0"
      # Asked for in the outgoing peer, the answer comes at the cutover.
      Wait.until(fn -> eval!(instance, "BeamDeploy.upgrading?()") == false end)
      assert length(os_pids(instance)) == 2

      assert eval!(instance, ~s|BeamDeploy.rollback("9.9.9")|) ==
               {:error, {:unknown_release, "9.9.9"}}

      assert eval!(instance, ~s|BeamDeploy.rollback("0.2.0")|) ==
               {:error, {:already_current, "0.2.0"}}

      assert [
               {:rollback, "0.2.0", nil, {:error, "release \"0.2.0\" serves already"}},
               {:rollback, "0.2.0", nil, {:error, _unknown}},
               {:rollback, "0.1.0", "0.2.0", :ok},
               {:rollback, "0.3.0", "0.1.0", :ok},
               {:rollback, "0.2.0", "0.3.0", :ok},
               {:rollback, "0.3.0", "0.2.0", :ok},
               {:blue_green, "0.2.0", "0.3.0", :ok},
               {:blue_green, "0.1.0", "0.2.0", :ok}
             ] = history(instance)
    end

    test "fails where there is nothing to go back to", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)
      assert eval!(instance, "BeamDeploy.rollback()") == {:error, :no_previous_release}
      assert {output, status} = rpc(instance, "BeamDeploy.rollback!()")
      assert status != 0
      assert output =~ "no release served before this one"
    end
  end

  describe "a release that keeps ending" do
    test "right after its swap is rolled back, once", %{tmp_dir: tmp_dir} do
      instance = deployed(tmp_dir, start_options: [max_restarts: 2, max_seconds: 600])
      Wait.until(fn -> eval!(instance, "BeamDeploy.upgrading?()") == false end)

      for _ <- 1..2 do
        peer = peer_os_pid(instance)
        signal(peer, "KILL")
        Wait.until(fn -> peer_os_pid(instance) != peer end)
        Wait.until(fn -> eval!(instance, "BeamDeploy.peer_node()") != nil end)
      end

      assert version(instance) == "0.1.0"
      assert_logged(instance, "release 0.2.0 is rolled back to 0.1.0")

      assert [
               {:rollback, "0.2.0", "0.1.0", :ok},
               {:boot, nil, "0.2.0", {:error, "it ended by itself 2 times" <> _}} | _
             ] = history(instance)

      # Durably; and beyond the intensity the parent ends as ever.
      assert %{recent: 2, total: 2} = eval!(instance, "BeamDeploy.info().restarts")
      signal(peer_os_pid(instance), "KILL")
      assert await_exit(instance) != 0
      assert os_pids(instance) == []

      restart(instance)
      assert version(instance) == "0.1.0"
    end
  end

  describe "an operator" do
    test "sees each phase, and a caller that goes away stops nothing", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)
      tarball = SampleRelease.tarball("0.2.0")
      assert {output, 0} = rpc(instance, "BeamDeploy.upgrade!(#{inspect(tarball)})")

      for phase <- ~w(verify stage boot health cutover drain stop finish),
          do: assert(output =~ ~r/^#{phase} +[\d.]+ ms/m)

      assert output =~ ~r/^done +[\d.]+ ms  0.1.0 -> 0.2.0$/m

      assert {output, status} =
               rpc(
                 instance,
                 "BeamDeploy.upgrade!(#{inspect(SampleRelease.tarball("0.3.0", :crashes_at_boot))})"
               )

      assert status != 0
      # An application that fails may have been seen as started for a moment.
      assert output =~ ~r/^(boot|health) +[\d.]+ ms failed: the new release does not boot/m

      # The log has the sentence once, and what the peer printed once.
      assert_logged(instance, ~r/swap (boot|health) version=0.3.0.* failed after/)
      refute log(instance) =~ "last it printed"

      # A terminal that is gone in the middle.
      eval!(instance, """
      device = spawn(fn -> receive do {:io_request, _, _, _} -> exit(:gone) end end)
      caller = %{node: node(), terminal: device}
      BeamDeploy.Remote.rollback(nil, caller)
      """)

      assert version(instance) == "0.1.0"

      # One that does not answer: the swap takes no longer, the caller gets its answer.
      assert eval!(instance, """
             device = spawn(fn -> Process.sleep(:infinity) end)
             BeamDeploy.Remote.rollback(nil, %{node: node(), terminal: device})
             """) == :ok

      assert version(instance) == "0.2.0"
      assert {:blue_green, "0.2.0", "0.3.0", {:error, _}} = Enum.at(history(instance), 2)
    end

    test "subscribes from the parent and from a peer", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)
      tarball = SampleRelease.tarball("0.2.0")

      events =
        eval!(instance, """
        :ok = BeamDeploy.subscribe()
        :ok = BeamDeploy.upgrade(#{inspect(tarball)})
        {:error, _} = BeamDeploy.upgrade("/nowhere")
        collect = fn collect ->
          receive do {:beam_deploy, event, metadata} -> [{event, metadata} | collect.(collect)] after 0 -> [] end
        end
        collect.(collect)
        """)

      names = for {event, metadata} <- events, do: {event, metadata[:phase]}
      phases = [:verify, :stage, :boot, :health, :cutover, :drain, :stop, :finish]

      assert names ==
               [{[:swap, :start], nil}] ++
                 Enum.flat_map(
                   phases,
                   &[{[:swap, :phase, :start], &1}, {[:swap, :phase, :stop], &1}]
                 ) ++
                 [
                   {[:swap, :stop], nil},
                   {[:swap, :start], nil},
                   {[:swap, :phase, :start], :verify},
                   {[:swap, :phase, :exception], :verify},
                   {[:swap, :exception], nil}
                 ]

      assert {_, %{from: "0.1.0", to: "0.2.0", action: :upgrade, duration_ms: duration}} =
               List.keyfind(events, [:swap, :stop], 0)

      assert duration > 0

      # A subscriber in a peer hears of the next swap up to its own end.
      eval_in_peer!(instance, """
      spawn(fn ->
        :ok = BeamDeploy.subscribe()
        :persistent_term.put(:subscribed, true)
        receive do {:beam_deploy, [:swap, :start], %{action: action}} -> BeamDeploy.put_handoff(:heard, action) end
      end)
      """)

      Wait.until(fn -> eval_in_peer!(instance, ":persistent_term.get(:subscribed, false)") end)
      assert eval!(instance, "BeamDeploy.rollback()") == :ok
      assert eval!(instance, "BeamDeploy.get_handoff(:heard)") == :rollback
      # Gone with their processes.
      Wait.until(fn ->
        eval!(instance, ":sys.get_state(BeamDeploy.Events.Subscribers)") == %{}
      end)
    end

    test "sees and hears of a hot upgrade as well", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)
      tarball = SampleRelease.tarball("0.2.0")

      assert {output, 0} =
               rpc(instance, """
               BeamDeploy.subscribe()
               BeamDeploy.hot_upgrade!(#{inspect(tarball)}, otp_app: :sample)
               receive do {:beam_deploy, [:hot_upgrade, :stop], metadata} -> IO.puts("heard of #\{metadata.version}") after 0 -> :ok end
               """)

      for phase <- ~w(plan stage suspend load migrate resume refresh),
          do: assert(output =~ ~r/^#{phase} +[\d.]+ ms/m)

      assert output =~ ~r/^done +[\d.]+ ms  version=0.2.0$/m
      assert output =~ "heard of 0.2.0"
      assert [{:hot, "0.1.0", "0.2.0", :ok}] = history(instance)

      # Undone by a swap back.
      assert eval!(instance, "BeamDeploy.rollback()") == :ok
      assert version(instance) == "0.1.0"
    end

    test "is told everything by info/0", %{tmp_dir: tmp_dir} do
      instance = deployed(tmp_dir)
      info = eval!(instance, "BeamDeploy.info()")
      assert %{beam_deploy: "0.1.0", elixir: _, otp_release: otp} = info
      assert [%{memory: memory, otp_release: ^otp, version: "0.2.0"}] = info.peers
      assert memory > 1_000_000
      assert info.store_bytes > 1_000_000
      assert ["0.2.0", "0.1.0"] = Enum.map(info.releases, & &1.version)
      assert %{total: 0, recent: 0, allowed: 3, within_seconds: 60} = info.restarts
      assert {:ok, %{status: 200}} = Http.get(instance.port, "/version")

      cookie = File.read!(Path.join(instance.root, "releases/COOKIE"))
      refute log(instance) =~ cookie
      refute inspect(info, limit: :infinity) =~ cookie
    end
  end
end
