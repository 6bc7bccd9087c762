defmodule BeamDeploy.Integration.FailureTest do
  # Every fault of a swap, provoked on real releases: the old peer goes on, nothing is left, and the error says why.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Instance
  import BeamDeploy.Test.LogFile
  alias BeamDeploy.Test.{Epmd, Http, Root, SampleRelease, Tarball, Wait}

  @moduletag :tmp_dir
  @moduletag :integration

  # What must hold after a swap that failed before its cutover.
  defp assert_untouched(instance, os_pids) do
    assert version(instance) == "0.1.0"
    assert Enum.sort(os_pids(instance)) == os_pids
    assert staged(instance) == []

    assert Enum.sort(File.ls!(Path.join(instance.store, "run"))) == [
             "blue.boot",
             "blue.modules",
             "parent.sock"
           ]

    assert %{
             upgrading: false,
             active_node: active,
             listeners: %{active: :blue, addresses: [%{sides: [:blue]}]}
           } = eval!(instance, "BeamDeploy.info()")

    assert active == :"#{instance.name}_blue@127.0.0.1"
  end

  defp failing_upgrade(instance, tarball, options \\ []) do
    os_pids = Enum.sort(os_pids(instance))
    assert {:error, reason} = upgrade(instance, tarball, options)
    assert_untouched(instance, os_pids)
    reason
  end

  describe "a tarball that is no release for us" do
    setup %{tmp_dir: tmp_dir}, do: %{instance: start(tmp_dir)}

    test "is refused with the reason", %{instance: instance, tmp_dir: tmp_dir} do
      good = File.read!(SampleRelease.tarball("0.2.0"))

      write = fn name, bytes ->
        path = Path.join(tmp_dir, name)
        File.write!(path, bytes)
        path
      end

      assert failing_upgrade(instance, Path.join(tmp_dir, "absent.tar.gz")) == :release_not_found
      assert failing_upgrade(instance, tmp_dir) == :release_not_found

      # Which nobody can read, root included.
      loop = Path.join(tmp_dir, "loop.tar.gz")
      File.ln_s!(loop, loop)
      assert failing_upgrade(instance, loop) == {:unreadable, :eloop}

      assert {:extract_failed, message} =
               failing_upgrade(instance, write.("text", "not a tarball"))

      assert message =~ "gzip"

      truncated = binary_part(good, 0, div(byte_size(good), 2))

      assert {:extract_failed, _message} =
               failing_upgrade(instance, write.("truncated", truncated))

      <<before::binary-size(3_000_000), byte, rest::binary>> = good
      flipped = <<before::binary, Bitwise.bxor(byte, 0x10), rest::binary>>
      assert {:extract_failed, _message} = failing_upgrade(instance, write.("flipped", flipped))

      tar = Path.join(tmp_dir, "other.tar.gz")
      :ok = :erl_tar.create(tar, [{~c"hello", "not a release"}], [:compressed])
      assert failing_upgrade(instance, tar) == {:invalid_release, :not_a_release}

      evil = Path.join(tmp_dir, "evil.tar.gz")
      :ok = :erl_tar.create(evil, [{~c"../../escaped", "gotcha"}], [:compressed])
      assert {:unsafe_archive, "../../escaped", _why} = failing_upgrade(instance, evil)
      assert Path.wildcard(Path.join(tmp_dir, "**/escaped")) == []

      expected = String.duplicate("0", 64)
      actual = Base.encode16(:crypto.hash(:sha256, good), case: :lower)

      assert failing_upgrade(instance, SampleRelease.tarball("0.2.0"), sha256: expected) ==
               {:checksum_mismatch, expected, actual}

      assert {:invalid_release, {:other_app, apps}} =
               failing_upgrade(instance, SampleRelease.tarball("0.2.0", :good, app: :other))

      assert "other" in apps

      # Made for another OTP, without a runtime of its own; with one, for another processor.
      foreign = fn options ->
        Tarball.release([name: "sample", version: "0.2.0", erts: "99.0"] ++ options)
      end

      other_otp = Tarball.write!(Path.join(tmp_dir, "otp.tar.gz"), foreign.([]))

      assert {:incompatible_release, %{what: :otp_release, release: "111"}} =
               failing_upgrade(instance, other_otp)

      [emulator] = Path.wildcard(Path.join(instance.root, "erts-*/bin/beam.smp"))
      <<start::binary-size(18), machine, rest::binary>> = File.read!(emulator)
      other = if machine == 62, do: 183, else: 62
      files = [{"erts-99.0/bin/beam.smp", <<start::binary, other, rest::binary>>}]
      other_cpu = Tarball.write!(Path.join(tmp_dir, "cpu.tar.gz"), foreign.(files: files))

      assert {:incompatible_release, %{file: "erts-99.0/bin/beam.smp"}} =
               failing_upgrade(instance, other_cpu)

      # After all of that a good one passes, digest and all.
      assert upgrade(instance, SampleRelease.tarball("0.2.0"), sha256: actual) == :ok
      assert version(instance) == "0.2.0"
    end

    test "makes bin/sample rpc fail", %{instance: instance} do
      assert {output, status} = rpc(instance, ~s|BeamDeploy.upgrade!("/nowhere/at-all.tar.gz")|)
      assert status != 0
      assert output =~ "there is no such file"
    end

    test "wrong options raise and change nothing", %{instance: instance} do
      assert {output, status} = rpc(instance, ~s|BeamDeploy.upgrade("/tmp/x.tar.gz", sha: "1")|)
      assert status != 0
      assert output =~ "no option :sha"
      assert version(instance) == "0.1.0"
    end
  end

  if Root.root?() do
    # Only root may mount a file system.
    test "a disk that is full leaves the old peer serving, and gets its space back", %{
      tmp_dir: tmp_dir
    } do
      tarball = SampleRelease.tarball("0.2.0")
      mount = Path.join(tmp_dir, "small")
      :ok = Root.mount_disk(mount, "size=4m,mode=0700")
      instance = start(tmp_dir, store: Path.join(mount, "store"))
      used = fn -> elem(System.cmd("du", ["-s", "--exclude=state", mount]), 0) end
      # It removes what the peer printed at its boot.
      await_active(instance)
      before = used.()
      assert failing_upgrade(instance, tarball) == {:extract_failed, :enospc}
      assert used.() == before
    end
  end

  test "a version that crashes, halts or does not configure itself", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)

    assert {:boot_failed, details} =
             failing_upgrade(instance, SampleRelease.tarball("0.2.0", :crashes_at_boot))

    assert details.version == "0.2.0"
    assert details.output =~ "this version cannot start"

    assert {:boot_failed, _details} =
             failing_upgrade(instance, SampleRelease.tarball("0.2.0", :halts_at_boot))

    # The error of a config provider goes to standard error only, before any application runs.
    assert {:boot_failed, details} =
             failing_upgrade(instance, SampleRelease.tarball("0.2.0", :raises_in_runtime_config))

    assert details.output =~ "SAMPLE_SECRET is missing"
    assert_logged(instance, "SAMPLE_SECRET is missing")

    # vm.args that the VM refuses.
    assert {:boot_failed, details} =
             failing_upgrade(instance, SampleRelease.tarball("0.2.0", :bad_vm_args))

    assert details.output != ""
    assert_logged(instance, "bad")

    assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
    assert version(instance) == "0.2.0"
  end

  test "a version that hangs at boot", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir, start_options: [boot_timeout: 30_000])
    tarball = SampleRelease.tarball("0.2.0", :hangs_at_boot)
    assert {:boot_timeout, %{version: "0.2.0"}} = failing_upgrade(instance, tarball)
  end

  test "while a version boots the parent answers, and refuses a second upgrade at once", %{
    tmp_dir: tmp_dir
  } do
    tarball = SampleRelease.tarball("0.2.0")
    instance = start(tmp_dir)
    upgrade = held_upgrade(instance, tmp_dir, tarball)
    assert eval!(instance, "BeamDeploy.upgrading?()")
    assert version(instance) == "0.1.0"
    assert upgrade(instance, tarball) == {:error, :upgrade_in_progress}
    refute Task.yield(upgrade, 0)
    set_gate(tmp_dir, "open")
    assert Wait.await(upgrade) == :ok
  end

  test "a version that is never healthy", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir, start_options: [health_timeout: 3_000])

    assert {:health_check_failed, details} =
             failing_upgrade(instance, SampleRelease.tarball("0.2.0", :unhealthy))

    assert details.answer == {:error, :database_is_down}
  end

  test "a new peer that is killed while it boots", %{tmp_dir: tmp_dir} do
    tarball = SampleRelease.tarball("0.2.0", :hangs_at_boot)
    instance = start(tmp_dir)
    os_pids = Enum.sort(os_pids(instance))
    upgrade = Task.async(fn -> upgrade(instance, tarball) end)

    Wait.until(fn -> match?([_], os_pids(instance) -- os_pids) end)
    [incoming] = os_pids(instance) -- os_pids
    signal(incoming, "KILL")
    assert {:error, {:boot_failed, %{version: "0.2.0"}}} = Wait.await(upgrade)
    assert_untouched(instance, os_pids)
  end

  test "an old peer that ignores its shutdown is killed in the end", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir, variant: :ignores_shutdown, start_options: [shutdown_timeout: 300])
    blue = peer_os_pid(instance)
    assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
    assert version(instance) == "0.2.0"
    refute blue in os_pids(instance)
    assert_logged(instance, "did not stop in time and was killed")
  end

  test "an old peer that is frozen does not keep the new one out", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir, start_options: [shutdown_timeout: 300])
    blue = peer_os_pid(instance)
    signal(blue, "STOP")
    assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
    assert version(instance) == "0.2.0"
    refute blue in os_pids(instance)
  end

  test "hooks that fail break nothing", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir, variant: :hooks_raise)
    assert upgrade(instance, SampleRelease.tarball("0.2.0", :hooks_raise)) == :ok
    assert version(instance) == "0.2.0"
    assert_logged(instance, "before_cutover failed")
    assert_logged(instance, "after_cutover failed")
  end

  describe "an active peer that ends by itself" do
    test "is booted again, with the version it had", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)
      assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
      green = peer_os_pid(instance)
      signal(green, "KILL")

      # A client that comes meanwhile waits in the queue, and is served by the next peer.
      assert {:ok, %{status: 200, body: "0.2.0"}} = Http.get(instance.port, "/version")
      assert peer_os_pid(instance) != green

      Wait.until(fn ->
        eval!(instance, "BeamDeploy.peer_node()") == :"#{instance.name}_green@127.0.0.1"
      end)

      assert length(os_pids(instance)) == 2
    end

    test "because the parent's own process for it crashed leaves no cookie in the log", %{
      tmp_dir: tmp_dir
    } do
      instance = start(tmp_dir)
      blue = peer_os_pid(instance)
      peer = "#{instance.name}_blue@127.0.0.1"

      eval!(instance, """
      for {_id, pid, _type, _modules} <- DynamicSupervisor.which_children(BeamDeploy.PeerSupervisor),
          {:dictionary, dictionary} = Process.info(pid, :dictionary),
          dictionary[:"$initial_call"] == {:peer, :init, 1},
          do: Process.exit(pid, :told_to_crash)
      """)

      await_another_peer(instance, blue)
      await_active(instance)

      # With its state, where the peer's environment is.
      assert_logged(instance, "told_to_crash")
      assert_logged(instance, ~r/RELEASE_NODE.*#{peer}/)
      cookie = File.read!(Path.join(instance.root, "releases/COOKIE"))
      assert eval_in_peer!(instance, ~s|System.get_env("RELEASE_COOKIE")|) == cookie
      refute log(instance) =~ cookie
      refute File.exists?(Path.join(instance.store, "run/blue.cookie"))
    end

    test "is booted again when its supervision tree gives up", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)
      blue = peer_os_pid(instance)

      # It may not live to answer.
      eval!(
        instance,
        ~s|:erpc.cast(BeamDeploy.peer_node(), Code, :eval_string, ["Process.exit(Process.whereis(Sample.Supervisor), :kill)"])|
      )

      await_another_peer(instance, blue)
      assert version(instance) == "0.1.0"
    end

    # While the old one ends, connections to it do so as well.
    defp await_another_peer(instance, os_pid) do
      former = to_string(os_pid)

      Wait.until(fn ->
        match?(
          {:ok, %{body: body}} when body not in ["", former],
          Http.get(instance.port, "/os_pid")
        )
      end)
    end

    test "ends the parent when it keeps ending", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir, start_options: [max_restarts: 1, max_seconds: 600])
      first = peer_os_pid(instance)
      signal(first, "KILL")
      second = peer_os_pid(instance)
      assert second != first
      await_active(instance)
      signal(second, "KILL")
      assert await_exit(instance) != 0
      assert os_pids(instance) == []
    end

    test "during a swap leaves the new version serving", %{tmp_dir: tmp_dir} do
      {instance, upgrade} = ends_during_a_swap(tmp_dir)
      # Once they are connected they wait in the queue of the one that ended.
      waiting = for _ <- 1..20, do: Http.connect!(instance.port)
      set_gate(tmp_dir, "open")

      for client <- waiting,
          do: assert({:ok, %{status: 200, body: "0.2.0"}} = Http.request(client, "/version"))

      Enum.each(waiting, &:gen_tcp.close/1)
      assert Wait.await(upgrade) == :ok
      assert version(instance) == "0.2.0"
      assert length(os_pids(instance)) == 2
      assert_logged(instance, "release 0.2.0 is booted once more, in its place")
      assert [%{version: "0.2.0", side: :blue}] = eval!(instance, "BeamDeploy.info().peers")

      # The next swap goes on from there.
      assert eval!(instance, "BeamDeploy.rollback()") == :ok
      assert version(instance) == "0.1.0"
    end

    test "during a swap that fails is booted again", %{tmp_dir: tmp_dir} do
      {instance, upgrade} = ends_during_a_swap(tmp_dir)
      set_gate(tmp_dir, "crash 0.2.0")
      assert {:error, {:boot_failed, _details}} = Wait.await(upgrade)
      assert {:ok, %{status: 200, body: "0.1.0"}} = Http.get(instance.port, "/version")
      assert length(os_pids(instance)) == 2
    end

    # While the new one is held at its boot.
    defp ends_during_a_swap(tmp_dir) do
      tarball = SampleRelease.tarball("0.2.0")
      instance = start(tmp_dir)
      blue = peer_os_pid(instance)
      upgrade = held_upgrade(instance, tmp_dir, tarball)
      signal(blue, "KILL")

      Wait.until(fn ->
        eval!(instance, "BeamDeploy.status()") == %{active_node: nil, upgrading: true}
      end)

      {instance, upgrade}
    end
  end

  describe "the parent" do
    test "killed leaves no peer behind", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)
      signal(parent_os_pid(instance), "KILL")
      assert await_exit(instance) == 137
      Wait.until(fn -> os_pids(instance) == [] end)
    end

    test "killed in the middle of a swap leaves no peer behind", %{tmp_dir: tmp_dir} do
      tarball = SampleRelease.tarball("0.2.0", :hangs_at_boot)
      instance = start(tmp_dir)
      parent = parent_os_pid(instance)
      Task.start(fn -> rpc(instance, "BeamDeploy.upgrade(#{inspect(tarball)})") end)

      Wait.until(fn -> length(peer_os_pids(instance)) == 2 end)
      signal(parent, "KILL")
      assert await_exit(instance) == 137
      Wait.until(fn -> os_pids(instance) == [] end)
    end

    test "told to stop in the middle of a swap stops both peers", %{tmp_dir: tmp_dir} do
      tarball = SampleRelease.tarball("0.2.0", :hangs_at_boot)
      instance = start(tmp_dir)
      Task.start(fn -> rpc(instance, "BeamDeploy.upgrade(#{inspect(tarball)})") end)
      Wait.until(fn -> length(peer_os_pids(instance)) == 2 end)
      signal(parent_os_pid(instance), "TERM")
      assert await_exit(instance) == 0
      assert os_pids(instance) == []

      restart(instance)
      assert version(instance) == "0.1.0"
      assert staged(instance) == []
    end

    test "told to stop stops its peer first, and in order", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)
      file = Path.join(tmp_dir, "answer")
      slow = held_request(instance, file)

      signal(parent_os_pid(instance), "TERM")
      assert_logged(instance, "SIGTERM received")
      # What the peer had accepted is finished.
      File.touch!(file)
      assert {:ok, %{status: 200, body: "0.1.0"}} = Wait.await(slow)
      assert await_exit(instance) == 0
      assert os_pids(instance) == []
    end

    test "finds its peers from a store whose path is too long for a socket, and leaves nothing of that",
         %{tmp_dir: tmp_dir} do
      store = Path.join(tmp_dir, String.duplicate("deep/", 20))
      instance = start(tmp_dir, store: store)
      run = Path.join(instance.store, "run")

      assert [link] =
               for(
                 path <- Path.wildcard(Path.join(System.tmp_dir!(), "beam_deploy-*")),
                 File.read_link(path) == {:ok, run},
                 do: path
               )

      assert upgrade(instance, SampleRelease.tarball("0.2.0")) == :ok
      signal(parent_os_pid(instance), "TERM")
      assert await_exit(instance) == 0
      assert File.read_link(link) == {:error, :enoent}
    end

    test "does not start when its first peer does not, and says why", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir, variant: :crashes_at_boot, await: false)
      assert await_exit(instance) != 0
      assert os_pids(instance) == []
      assert_logged(instance, "this version cannot start")
    end

    test "says which variables start distribution", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir, environment: %{"RELEASE_DISTRIBUTION" => "none"}, await: false)
      assert await_exit(instance) != 0
      assert_logged(instance, "RELEASE_DISTRIBUTION")
    end

    test "keeps a second one out of its store", %{tmp_dir: tmp_dir} do
      instance = start(tmp_dir)
      other = Path.join(tmp_dir, "other")
      File.mkdir_p!(other)

      # The same directory and the same name, which a node can only have where another port mapper is asked.
      environment = %{
        "BEAM_DEPLOY_DIR" => instance.environment["BEAM_DEPLOY_DIR"],
        "RELEASE_NODE" => "#{instance.name}@127.0.0.1",
        "ERL_EPMD_PORT" => Epmd.start(&on_exit/1)
      }

      rival = start(other, environment: environment, await: false)

      assert await_exit(rival) != 0
      assert_logged(rival, "store_in_use")
      assert_logged(rival, "belongs to another running parent")
      assert version(instance) == "0.1.0"
    end
  end
end
