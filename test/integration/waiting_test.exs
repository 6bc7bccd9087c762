defmodule BeamDeploy.Integration.WaitingTest do
  # What is asked for while no peer serves: it waits for the boot that is under way.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Instance
  import BeamDeploy.Test.LogFile
  alias BeamDeploy.Test.{Http, SampleRelease, Wait}

  @moduletag :tmp_dir
  @moduletag :integration

  setup do
    for version <- ["0.1.0", "0.2.0", "0.3.0"], do: SampleRelease.tarball(version)
    :ok
  end

  # Asks for it, and returns once it waits.
  defp ask(instance, expression) do
    asked = Task.async(fn -> rpc(instance, "IO.inspect(#{expression})") end)

    Wait.until(fn -> status(instance) == %{active_node: nil, upgrading: true} end,
      otherwise: fn -> log(instance) end
    )

    asked
  end

  # A parent that starts may not be reached yet.
  defp status(instance) do
    with {output, 0} <- rpc(instance, "IO.inspect(BeamDeploy.status())"),
         do: output |> Code.eval_string() |> elem(0)
  end

  # Its first peer is held before it serves.
  defp held_first(context) do
    set_gate(context.tmp_dir, "hold")
    instance = start(context.tmp_dir, await: false)
    Wait.until(fn -> match?([_], peer_os_pids(instance)) end)
    instance
  end

  # Its peer is gone, and the next one is held before it serves.
  defp killed_and_held(instance, tmp_dir) do
    set_gate(tmp_dir, "hold")
    peer = peer_os_pid(instance)
    signal(peer, "KILL")
    Wait.until(fn -> match?([next] when next != peer, peer_os_pids(instance)) end)
  end

  defp upgrade_to(version), do: "BeamDeploy.upgrade(#{inspect(SampleRelease.tarball(version))})"

  defp history(instance) do
    for entry <- eval!(instance, "BeamDeploy.history()"),
        do: {entry.kind, entry.to && elem(entry.to, 0), entry.outcome}
  end

  describe "while the first peer is booted" do
    test "an upgrade waits for it, and a second one is refused at once", context do
      instance = held_first(context)
      asked = ask(instance, upgrade_to("0.2.0"))

      assert eval!(instance, upgrade_to("0.3.0")) == {:error, :upgrade_in_progress}
      assert eval!(instance, "BeamDeploy.rollback()") == {:error, :upgrade_in_progress}

      assert eval!(instance, ~s|BeamDeploy.hot_upgrade("/nowhere", otp_app: :sample)|) ==
               {:error, :upgrade_in_progress}

      set_gate(context.tmp_dir, "open")
      assert {output, 0} = Wait.await(asked)
      assert output =~ "waiting for a peer of release 0.1.0 that is being booted"
      assert output =~ ~r/^:ok$/m
      assert version(instance) == "0.2.0"
      assert_logged(instance, "upgrade waiting for a peer of release 0.1.0")

      assert %{active_node: node, upgrading: false} = eval!(instance, "BeamDeploy.status()")
      assert node == :"#{instance.name}_green@127.0.0.1"
      assert [{:blue_green, "0.2.0", :ok}] = history(instance)
      assert length(os_pids(instance)) == 2
    end

    test "that peer itself is not to ask for one", context do
      instance = held_first(context)
      peer = inspect(:"#{instance.name}_blue@127.0.0.1")

      Wait.until(fn ->
        match?({"true\n", 0}, rpc(instance, "IO.inspect(#{peer} in Node.list(:connected))"))
      end)

      asked =
        "#{peer} |> :erpc.call(Code, :eval_string, [#{inspect(upgrade_to("0.2.0"))}]) |> elem(0)"

      assert eval!(instance, asked) == {:error, :no_active_peer}
      set_gate(context.tmp_dir, "open")
      await_active(instance)
      assert version(instance) == "0.1.0"
    end

    test "whoever waits is told when it does not come up, and the parent ends", context do
      instance = held_first(context)
      asked = ask(instance, upgrade_to("0.2.0"))
      set_gate(context.tmp_dir, "crash 0.1.0")
      assert {output, _status} = Wait.await(asked)
      assert output =~ ":peer_boot_failed"
      assert output =~ ":boot_failed"
      assert output =~ "this version does not start at the moment"
      assert await_exit(instance) != 0
      assert os_pids(instance) == []
    end
  end

  describe "while a peer that was killed is booted again" do
    test "an upgrade, a hot upgrade and a rollback wait for it", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)

      for {expression, version} <- [
            {upgrade_to("0.2.0"), "0.2.0"},
            {"BeamDeploy.hot_upgrade(#{inspect(SampleRelease.tarball("0.3.0"))}, otp_app: :sample)",
             "0.3.0"},
            {"BeamDeploy.rollback()", "0.2.0"}
          ] do
        killed_and_held(instance, tmp_dir)
        asked = ask(instance, expression)
        set_gate(tmp_dir, "open")
        assert {output, 0} = Wait.await(asked)
        assert output =~ ~r/^:ok$/m
        assert eval_in_peer!(instance, "Sample.Label.value()") == "compiled for #{version}"
        assert eval!(instance, "BeamDeploy.current_vsn()") == version
        assert eval!(instance, "BeamDeploy.upgrading?()") == false
      end

      assert [{:rollback, "0.2.0", :ok}, {:hot, "0.3.0", :ok}, {:blue_green, "0.2.0", :ok}] =
               history(instance)
    end

    test "and does not come up, an upgrade takes its place, with the connections that wait",
         %{tmp_dir: tmp_dir} do
      # The boot that fails is one more end than the parent would bear with.
      instance = start(tmp_dir, start_options: [max_restarts: 1])
      killed_and_held(instance, tmp_dir)
      client = Task.async(fn -> Http.get(instance.port, "/version") end)
      asked = ask(instance, upgrade_to("0.2.0"))
      set_gate(tmp_dir, "crash 0.1.0")

      assert {output, 0} = Wait.await(asked)
      assert output =~ ~r/^:ok$/m
      assert {:ok, %{status: 200, body: "0.2.0"}} = Wait.await(client)
      assert eval!(instance, "BeamDeploy.current_vsn()") == "0.2.0"
      assert eval_in_peer!(instance, ":persistent_term.get(:after_cutover)") == nil

      # It is not blamed for the ends of what served before.
      assert %{recent: 0, total: 2} = eval!(instance, "BeamDeploy.info().restarts")
      assert [{:blue_green, "0.2.0", :ok}] = history(instance)

      # And a swap like any other comes next.
      set_gate(tmp_dir, "open")
      assert eval!(instance, "BeamDeploy.rollback()") == :ok
      assert version(instance) == "0.1.0"
    end

    test "and neither that nor what was asked for comes up, the parent ends",
         %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir, start_options: [max_restarts: 1])
      broken = SampleRelease.tarball("0.2.0", :crashes_at_boot)
      killed_and_held(instance, tmp_dir)
      asked = ask(instance, "BeamDeploy.upgrade(#{inspect(broken)})")
      set_gate(tmp_dir, "crash 0.1.0")
      assert {output, _status} = Wait.await(asked)
      assert output =~ ":boot_failed"
      assert output =~ "this version cannot start"
      assert await_exit(instance) != 0
      assert os_pids(instance) == []

      set_gate(tmp_dir, "open")
      restart(instance)
      assert version(instance) == "0.1.0"
      assert staged(instance) == []
    end

    test "a hot upgrade that waits for a peer in vain is told so", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir, start_options: [max_restarts: 1])
      killed_and_held(instance, tmp_dir)
      tarball = inspect(SampleRelease.tarball("0.2.0"))
      asked = ask(instance, "BeamDeploy.hot_upgrade(#{tarball}, otp_app: :sample)")
      set_gate(tmp_dir, "crash 0.1.0")
      assert {output, _status} = Wait.await(asked)
      assert output =~ ~s({:error, {:peer_boot_failed, {:peer_keeps_ending, "0.1.0"}}})
      assert await_exit(instance) != 0
    end
  end

  describe "while a release that has just taken over keeps ending" do
    # Its second end within the time in which that counts.
    defp ending(tmp_dir) do
      instance = start(tmp_dir, start_options: [max_seconds: 600])
      assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
      killed_and_held(instance, tmp_dir)
      instance
    end

    test "it is rolled back first, and an upgrade comes after that",
         %{tmp_dir: tmp_dir} do
      instance = ending(tmp_dir)
      asked = ask(instance, upgrade_to("0.3.0"))
      set_gate(tmp_dir, "crash 0.2.0")
      assert {output, 0} = Wait.await(asked)
      assert output =~ ~r/^:ok$/m
      assert eval!(instance, "BeamDeploy.current_vsn()") == "0.3.0"

      assert [
               {:blue_green, "0.3.0", :ok},
               {:rollback, "0.1.0", :ok},
               {:boot, "0.2.0", {:error, _}} | _
             ] = history(instance)
    end

    test "a rollback that was asked for is done by that", %{tmp_dir: tmp_dir} do
      instance = ending(tmp_dir)
      asked = ask(instance, "BeamDeploy.rollback()")
      set_gate(tmp_dir, "crash 0.2.0")
      assert {output, 0} = Wait.await(asked)
      assert output =~ ~r/^:ok$/m
      assert eval!(instance, "BeamDeploy.current_vsn()") == "0.1.0"
      assert [{:rollback, "0.1.0", :ok}, {:boot, "0.2.0", {:error, _}} | _] = history(instance)
    end

    test "what replaces it goes back to what it replaced, should it fare no better",
         %{tmp_dir: tmp_dir} do
      instance = ending(tmp_dir)
      asked = ask(instance, upgrade_to("0.3.0"))
      set_gate(tmp_dir, "open")
      assert {_output, 0} = Wait.await(asked)
      assert eval!(instance, "BeamDeploy.current_vsn()") == "0.3.0"

      set_gate(tmp_dir, "crash 0.3.0")
      signal(peer_os_pid(instance), "KILL")
      assert_logged(instance, "release 0.3.0 is rolled back to 0.1.0")
      await_active(instance)
      assert version(instance) == "0.1.0"
    end
  end
end
