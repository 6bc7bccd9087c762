defmodule BeamDeploy.Integration.KillTest do
  # kill -9 at random moments across swaps. KILL_ROUNDS is how many, KILL_SEED which ones.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Instance
  import BeamDeploy.Test.LogFile
  alias BeamDeploy.Test.{Http, SampleRelease, Wait}

  @moduletag :tmp_dir
  @moduletag :integration
  @moduletag timeout: :infinity

  @rounds String.to_integer(System.get_env("KILL_ROUNDS", "8"))
  @versions ["0.1.0", "0.2.0", "0.3.0"]
  # `caller` is `bin/sample rpc`, which asked for the swap; `incoming` the peer that boots.
  @victims [:parent, :parent, :peer, :incoming, :caller]

  test "a whole version serves, the store opens clean, nothing is left", %{tmp_dir: tmp_dir} do
    seed = String.to_integer(System.get_env("KILL_SEED", "1"))
    :rand.seed(:exsss, seed)
    instance = start(tmp_dir, start_options: [max_restarts: 1_000])
    swap_ms = time_of_a_swap(instance)

    Enum.reduce(1..@rounds, instance, fn number, instance ->
      victim = Enum.random(@victims)
      # From before the call arrives to after the swap's end.
      delay = :rand.uniform(2 * swap_ms + 400)
      before = version(instance)
      [target] = Enum.take_random(@versions -- [before], 1)
      caller = call_upgrade(instance, target)
      Process.sleep(delay)
      instance = strike(victim, instance, caller)
      end_caller(caller)
      message = "round #{number} of seed #{seed}: #{victim} killed after #{delay} ms"
      settle(instance, message)
      assert version(instance) in @versions, message
      assert_clean(instance, message)
      instance
    end)
  end

  defp time_of_a_swap(instance) do
    tarballs = Map.new(@versions, &{&1, SampleRelease.tarball(&1)})
    {time, :ok} = :timer.tc(fn -> upgrade(instance, tarballs["0.2.0"]) end)
    div(time, 1_000)
  end

  defp call_upgrade(instance, version) do
    Port.open({:spawn_executable, Path.join(instance.root, "bin/sample")}, [
      :binary,
      :exit_status,
      :stderr_to_stdout,
      args: ["rpc", "BeamDeploy.upgrade(#{inspect(SampleRelease.tarball(version))})"],
      env: for({name, value} <- instance.environment, do: {to_charlist(name), to_charlist(value)})
    ])
  end

  defp end_caller(caller) do
    receive do
      {^caller, {:exit_status, _status}} -> :ok
    after
      60_000 -> flunk("the caller does not end")
    end
  end

  defp strike(:parent, instance, _caller) do
    kill(parent_os_pid(instance))
    assert await_exit(instance) == 137
    Wait.until(fn -> os_pids(instance) == [] end)
    restart(instance)
  end

  defp strike(:caller, instance, caller) do
    with {:os_pid, os_pid} <- Port.info(caller, :os_pid), do: kill(os_pid)
    instance
  end

  defp strike(victim, instance, _caller) do
    peers = Enum.sort(peer_os_pids(instance))
    os_pid = if victim == :peer, do: List.first(peers), else: List.last(peers)
    if os_pid, do: kill(os_pid)
    instance
  end

  # It may have ended by itself.
  defp kill(os_pid), do: System.cmd("kill", ["-9", "#{os_pid}"], stderr_to_stdout: true)

  defp settle(instance, message) do
    Wait.until(
      fn ->
        match?({:ok, %{status: 200}}, Http.get(instance.port, "/version")) and
          match?(
            %{active_node: node, upgrading: false} when node != nil,
            eval!(instance, "BeamDeploy.status()")
          )
      end,
      otherwise: fn -> message <> "\n" <> log(instance) end
    )
  end

  defp assert_clean(instance, message) do
    assert length(os_pids(instance)) == 2, message
    info = eval!(instance, "BeamDeploy.info()")
    [peer] = info.peers
    assert peer.version == version(instance), message
    assert Enum.sort(staged(instance)) == listed(info, instance), message

    side = to_string(peer.side)
    files = Enum.sort(File.ls!(Path.join(instance.store, "run")))
    assert files == Enum.sort(["#{side}.boot", "#{side}.modules", "parent.sock"]), message
  end

  defp listed(info, instance) do
    releases = Path.join(instance.store, "releases")

    Enum.sort(
      for(%{root: root} <- info.releases, Path.dirname(root) == releases, do: Path.basename(root))
    )
  end
end
