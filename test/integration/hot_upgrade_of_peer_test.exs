defmodule BeamDeploy.Integration.HotUpgradeOfPeerTest do
  # Hot upgrades where there is a parent: carried out in its active peer, remembered by its store.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Instance
  alias BeamDeploy.Test.{Http, SampleRelease, Wait}

  @moduletag :tmp_dir
  @moduletag :integration

  defp hot_upgrade(instance, tarball, options \\ "otp_app: :sample"),
    do: eval!(instance, "BeamDeploy.hot_upgrade(#{inspect(tarball)}, #{options})")

  defp label(instance), do: eval_in_peer!(instance, "Sample.Label.value()")

  test "the active peer goes on with the new code, and whatever is booted later has it", %{
    tmp_dir: tmp_dir
  } do
    instance = start(tmp_dir)
    peer = peer_os_pid(instance)
    counted = eval_in_peer!(instance, "Sample.Counter.value()")

    assert {:ok, plan} =
             eval!(
               instance,
               "BeamDeploy.plan(#{inspect(SampleRelease.tarball("0.2.0"))}, otp_app: :sample)"
             )

    assert plan.recommendation == :hot
    assert plan.changed == ["Elixir.Sample.Label"]

    assert hot_upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
    assert label(instance) == "compiled for 0.2.0"
    assert peer_os_pid(instance) == peer
    assert eval_in_peer!(instance, "Sample.Counter.value()") == counted

    assert %{current: %{version: "0.2.0"}, upgrading: false} =
             eval!(instance, "BeamDeploy.info()")

    # After a crash of the peer.
    signal(peer, "KILL")
    assert {:ok, %{status: 200, body: "0.2.0"}} = Http.get(instance.port, "/version")
    await_active(instance)
    assert label(instance) == "compiled for 0.2.0"

    # After a restart of the parent, which is still of the base release.
    signal(parent_os_pid(instance), "KILL")
    assert await_exit(instance) == 137
    Wait.until(fn -> os_pids(instance) == [] end)
    File.rm!(instance.log)
    instance = restart(instance)
    assert version(instance) == "0.2.0"
    assert label(instance) == "compiled for 0.2.0"

    # And the next swap is one like any other.
    assert upgrade(instance, SampleRelease.tarball("0.1.0")) == :ok
    assert label(instance) == "compiled for 0.1.0"
  end

  test "asked for in the peer, it is carried out there as well", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    tarball = inspect(SampleRelease.tarball("0.2.0"))
    assert eval_in_peer!(instance, "BeamDeploy.hot_upgrade(#{tarball}, otp_app: :sample)") == :ok
    assert label(instance) == "compiled for 0.2.0"

    assert {:error, :nothing_changed} =
             eval_in_peer!(instance, "BeamDeploy.hot_upgrade(#{tarball}, otp_app: :sample)")
  end

  test "one that fails changes nothing, and leaves nothing in the store", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    tarball = SampleRelease.tarball("0.2.0", :good, app: :other)
    assert {:error, {:invalid_release, {:other_app, _apps}}} = hot_upgrade(instance, tarball)
    assert hot_upgrade(instance, "/nowhere/at-all.tar.gz") == {:error, :release_not_found}
    assert label(instance) == "compiled for 0.1.0"
    assert staged(instance) == []

    assert {output, status} =
             rpc(
               instance,
               ~s|BeamDeploy.hot_upgrade!("/nowhere/at-all.tar.gz", otp_app: :sample)|
             )

    assert status != 0
    assert output =~ "there is no such file"
  end

  test "a peer that is killed meanwhile is booted again with the release it had", %{
    tmp_dir: tmp_dir
  } do
    tarball = SampleRelease.tarball("0.2.0")
    instance = start(tmp_dir)
    peer = peer_os_pid(instance)
    # It cannot get on with it.
    signal(peer, "STOP")
    upgrade = Task.async(fn -> hot_upgrade(instance, tarball) end)
    Wait.until(fn -> match?([_release], staged(instance)) and upgrading_in_peer?(instance) end)
    signal(peer, "KILL")
    assert Wait.await(upgrade) == {:error, :no_active_peer}
    assert {:ok, %{status: 200, body: "0.1.0"}} = Http.get(instance.port, "/version")
    await_active(instance)
    assert label(instance) == "compiled for 0.1.0"
    assert staged(instance) == []
    assert %{upgrading: false} = eval!(instance, "BeamDeploy.status()")
  end

  test "a plan needs a peer that serves, until it is told", %{tmp_dir: tmp_dir} do
    tarball = inspect(SampleRelease.tarball("0.2.0"))
    instance = start(tmp_dir)
    peer = peer_os_pid(instance)
    set_gate(tmp_dir, "hold")
    signal(peer, "STOP")
    planned = Task.async(fn -> eval!(instance, "BeamDeploy.plan(#{tarball})") end)
    Wait.until(fn -> calling_peer?(instance) end)
    signal(peer, "KILL")
    assert Wait.await(planned) == {:error, :no_active_peer}
    assert eval!(instance, "BeamDeploy.plan(#{tarball})") == {:error, :no_active_peer}
    set_gate(tmp_dir, "open")
    await_active(instance)
    assert {:ok, %{recommendation: :hot}} = eval!(instance, "BeamDeploy.plan(#{tarball})")
  end

  defp calling_peer?(instance) do
    eval!(instance, """
    Enum.any?(
      Process.list(),
      &match?({:current_function, {:erpc, :call, _}}, Process.info(&1, :current_function))
    )
    """)
  end

  # Staged, all that the parent still waits for is the peer.
  defp upgrading_in_peer?(instance),
    do:
      File.ls!(Path.join(instance.store, "staging")) == [] and
        eval!(instance, "BeamDeploy.upgrading?()")

  test "never overlaps a swap", %{tmp_dir: tmp_dir} do
    tarball = SampleRelease.tarball("0.2.0")
    instance = start(tmp_dir)
    swap = held_upgrade(instance, tmp_dir, tarball)
    assert hot_upgrade(instance, tarball) == {:error, :upgrade_in_progress}
    set_gate(tmp_dir, "crash 0.2.0")
    assert {:error, {:boot_failed, _details}} = Wait.await(swap)
    assert hot_upgrade(instance, tarball) == :ok
  end
end
