defmodule BeamDeploy.Release.StoreTest do
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Tarball
  import ExUnit.CaptureLog

  alias BeamDeploy.Release
  alias BeamDeploy.Release.{Archive, Store}
  alias BeamDeploy.Test.{Root, StoreWorker}

  @moduletag :tmp_dir

  @root? Root.root?()

  setup %{tmp_dir: tmp} do
    base = base!(tmp, "0.1.0")
    {:ok, base: base, dir: Path.join(tmp, "store")}
  end

  defp base!(tmp, version, options \\ []) do
    root = Path.join(tmp, "base")
    File.rm_rf!(root)
    {:ok, base} = Release.read(release_on_disk!(root, [version: version] ++ options))
    base
  end

  defp open!(context, base \\ nil) do
    {:ok, store} = Store.open(context.dir, base || context.base)
    on_exit(fn -> Store.close(store) end)
    store
  end

  defp reopen!(store, base \\ nil) do
    :ok = Store.close(store)
    {:ok, store} = Store.open(store.dir, base || store.base)
    on_exit(fn -> Store.close(store) end)
    store
  end

  defp stage!(context, store, version, files \\ []) do
    path = Path.join(context.tmp_dir, "#{version}.tar.gz")

    write!(path, release(version: version, files: files))
    {:ok, release} = Archive.stage(path, store, otp_app: :my_app)
    release
  end

  defp deploy!(context, store, version) do
    release = stage!(context, store, version)
    :ok = Store.promote(store, release, swap(Store.current(store), release))
    release
  end

  defp swap(from, to, outcome \\ :ok) do
    %{
      kind: :blue_green,
      from: from && Release.id(from),
      to: to && Release.id(to),
      outcome: outcome
    }
  end

  defp staged(store), do: store.dir |> Path.join("releases") |> File.ls!() |> Enum.sort()

  describe "a new store" do
    test "serves the base", context do
      store = open!(context)
      assert Store.current(store) == context.base
      assert Store.base(store) == context.base
      assert Store.previous(store) == nil
      assert Store.releases(store) == [context.base]
      assert Store.history(store) == []
    end

    test "is nobody else's to read", context do
      store = open!(context)
      _release = deploy!(context, store, "0.2.0")
      mode = &Bitwise.band(File.stat!(Path.join(store.dir, &1)).mode, 0o777)
      assert mode.("") == 0o700
      assert mode.("releases") == 0o700
      assert mode.("state") == 0o600
      assert mode.("lock") == 0o600
    end

    test "is made below directories that are not there yet", context do
      dir = Path.join(context.dir, "a/b/c")
      assert {:ok, store} = Store.open(dir, context.base)
      assert store.dir == dir
    end
  end

  describe "a directory is refused" do
    test "that others may enter", context do
      File.mkdir_p!(context.dir)
      File.chmod!(context.dir, 0o750)

      assert Store.open(context.dir, context.base) ==
               {:error, {:insecure_store, context.dir, {:mode, 0o750}}}
    end

    if @root? do
      test "that belongs to somebody else", context do
        File.mkdir_p!(context.dir)
        File.chmod!(context.dir, 0o700)
        File.chown!(context.dir, 12_345)

        assert Store.open(context.dir, context.base) ==
                 {:error, {:insecure_store, context.dir, {:owner, 12_345, 0}}}
      end
    end

    test "below one where anybody may rename", context do
      above = Path.join(context.tmp_dir, "open")
      dir = Path.join(above, "store")
      File.mkdir_p!(above)
      File.chmod!(above, 0o777)

      assert Store.open(dir, context.base) ==
               {:error, {:insecure_store, dir, {:above, above, {:mode, 0o777}}}}

      # `File.chmod/2` leaves the sticky bit out.
      {"", 0} = System.cmd("chmod", ["1777", above])
      assert {:ok, _store} = Store.open(dir, context.base)
    end

    if @root? do
      test "below one of somebody else", context do
        above = Path.join(context.tmp_dir, "theirs")
        dir = Path.join(above, "store")
        File.mkdir_p!(above)
        File.chown!(above, 12_345)

        assert Store.open(dir, context.base) ==
                 {:error, {:insecure_store, dir, {:above, above, {:owner, 12_345}}}}

        File.chown!(context.base.root, 12_345)
        assert {:ok, _store} = Store.open(dir, context.base)
      end
    end

    test "that is a symlink", context do
      elsewhere = Path.join(context.tmp_dir, "elsewhere")
      File.mkdir_p!(elsewhere)
      File.ln_s!(elsewhere, context.dir)

      assert Store.open(context.dir, context.base) ==
               {:error, {:insecure_store, context.dir, {:not_a_directory, :symlink}}}
    end

    test "that another parent uses", context do
      store = open!(context)
      assert Store.open(context.dir, context.base) == {:error, {:store_in_use, context.dir}}
      :ok = Store.close(store)
      assert {:ok, _store} = Store.open(context.dir, context.base)
    end

    test "that cannot be made", context do
      File.write!(Path.join(context.tmp_dir, "file"), "")
      dir = Path.join(context.tmp_dir, "file/store")
      assert {:error, {:store_failed, ^dir, posix}} = Store.open(dir, context.base)
      assert posix in [:enotdir, :eexist]
    end
  end

  describe "promote" do
    test "makes a release current, also for the next parent", context do
      store = open!(context)
      second = deploy!(context, store, "0.2.0")
      third = deploy!(context, store, "0.3.0")
      store = reopen!(store)
      assert Store.current(store) == third
      assert Store.previous(store) == second
      assert Store.releases(store) == [third, second, context.base]
    end

    test "goes back as it goes forth", context do
      store = open!(context)
      second = deploy!(context, store, "0.2.0")
      entry = %{swap(second, context.base) | kind: :rollback}
      :ok = Store.promote(store, Store.previous(store), entry)
      assert Store.current(store) == context.base
      assert Store.previous(store) == second
      assert Store.current(reopen!(store)) == context.base
    end

    test "of what is current keeps the previous one", context do
      store = open!(context)
      second = deploy!(context, store, "0.2.0")
      :ok = Store.promote(store, second, %{kind: :hot, outcome: :ok})
      assert Store.previous(store) == context.base
      assert [%{kind: :hot}, %{kind: :blue_green}] = Store.history(store)
    end
  end

  describe "history" do
    test "says when, what, from where, to where and how it went, newest first", context do
      store = open!(context)
      before = DateTime.utc_now()
      second = deploy!(context, store, "0.2.0")
      failure = {:error, {:boot_failed, %{phase: :boot, status: 1}}}
      :ok = Store.record(store, swap(second, nil, failure))

      assert [failed, deployed] = Store.history(reopen!(store))
      assert %{kind: :blue_green, from: from, to: nil, outcome: {:error, text}} = failed
      assert from == Release.id(second)
      assert text =~ "boot_failed"
      assert %{from: {"0.1.0", nil}, outcome: :ok} = deployed
      assert deployed.to == Release.id(second)
      assert abs(DateTime.diff(deployed.at, before)) < 60
    end

    test "does not grow for ever", context do
      store = open!(context)
      for _round <- 1..130, do: :ok = Store.record(store, swap(nil, nil))
      assert length(Store.history(store)) == 100
    end
  end

  describe "fetch" do
    test "finds by version and by identity", context do
      store = open!(context)
      second = deploy!(context, store, "0.2.0")
      assert Store.fetch(store, "0.2.0") == {:ok, second}
      assert Store.fetch(store, Release.id(second)) == {:ok, second}
      assert Store.fetch(store, "0.1.0") == {:ok, context.base}
      assert Store.fetch(store, "9") == {:error, {:unknown_release, "9"}}
    end

    test "does not find what was only staged", context do
      store = open!(context)
      _release = stage!(context, store, "0.2.0")
      assert Store.fetch(store, "0.2.0") == {:error, {:unknown_release, "0.2.0"}}
    end
  end

  describe "prune" do
    test "keeps the newest, and all that is needed", context do
      store = open!(context)
      [r2, r3, r4, r5] = for n <- 2..5, do: deploy!(context, store, "0.#{n}.0")
      assert Store.prune(store, 1, [r2.root]) == {:ok, [Release.id(r3)]}
      assert Store.current(store) == r5
      assert Store.previous(store) == r4
      assert File.dir?(r2.root)
      refute File.exists?(r3.root)
      assert Store.prune(store, 0) == {:ok, [Release.id(r2)]}
      assert Store.prune(store, 0) == {:ok, []}
      assert Enum.sort(Enum.map([r4, r5], &Path.basename(&1.root))) == staged(store)
      assert File.ls!(Path.join(store.dir, "trash")) == []
    end

    test "spares the release to go back to", context do
      store = open!(context)
      second = deploy!(context, store, "0.2.0")
      :ok = Store.promote(store, context.base, swap(second, context.base))
      assert Store.prune(store, 0) == {:ok, []}
      assert Store.previous(store) == second
    end
  end

  describe "discard" do
    test "removes what never served, and nothing else", context do
      store = open!(context)
      second = deploy!(context, store, "0.2.0")
      third = stage!(context, store, "0.3.0")
      for release <- [second, third, context.base], do: :ok = Store.discard(store, release)
      refute File.exists?(third.root)
      assert File.dir?(second.root)
      assert File.dir?(context.base.root)
    end
  end

  describe "a release that is damaged" do
    defp deployed!(context, version) do
      store = open!(context)
      {store, deploy!(context, store, version)}
    end

    for file <- [
          "releases/0.2.0/start.boot",
          "lib/my_app-0.2.0/ebin/my_app.app",
          "beam_deploy.release"
        ] do
      test "is replaced by its tarball: #{file}", context do
        {store, release} = deployed!(context, "0.2.0")
        path = Path.join(release.root, unquote(file))
        File.rm!(path)

        {staged, log} = with_log(fn -> stage!(context, store, "0.2.0") end)
        assert log =~ "it is replaced by the same release"
        assert staged == release
        assert File.regular?(path)
        assert staged(store) == [Path.basename(release.root)]

        assert for(dir <- ["staging", "trash"], do: File.ls!(Path.join(store.dir, dir))) == [
                 [],
                 []
               ]

        assert Store.current(reopen!(store)) == release
      end
    end

    test "by what it wrote itself is not: it stays as it is", context do
      {store, release} = deployed!(context, "0.2.0")
      own = Path.join(release.root, "lib/own")
      File.write!(own, "written while it ran")
      changed = Path.join(release.root, "bin/my_app")
      File.write!(changed, "changed")
      assert stage!(context, store, "0.2.0") == release
      assert File.read!(own) == "written while it ran"
      assert File.read!(changed) == "changed"
    end

    test "or gone is not listed, and nothing is linked with it", context do
      {store, second} = deployed!(context, "0.2.0")
      third = deploy!(context, store, "0.3.0")
      assert Store.link_source(store) == third.root
      File.rm_rf!(third.root)
      assert Store.releases(store) == [second, context.base]
      assert Store.link_source(store) == second.root
      File.rm_rf!(second.root)
      assert Store.releases(store) == [context.base]
      assert Store.link_source(store) == nil
      assert %Release{} = stage!(context, store, "0.4.0")
    end
  end

  describe "a new base" do
    test "resets what is served, and keeps the history", context do
      store = open!(context)
      _second = deploy!(context, store, "0.2.0")
      :ok = Store.close(store)
      base = base!(context.tmp_dir, "0.5.0")

      {store, log} = with_log(fn -> open!(context, base) end)
      assert log =~ "0.5.0"
      assert Store.current(store) == base
      assert Store.previous(store) == nil
      assert staged(store) == []
      assert [%{kind: :boot, to: {"0.5.0", nil}}, %{kind: :blue_green}] = Store.history(store)
    end

    test "is known by its contents, not its version alone", context do
      store = open!(context)
      _second = deploy!(context, store, "0.2.0")
      :ok = Store.close(store)
      File.write!(Path.join(context.base.root, "releases/0.1.0/start.boot"), "rebuilt")
      {store, _log} = with_log(fn -> open!(context) end)
      assert Store.current(store) == context.base
    end
  end

  describe "opening" do
    test "removes what was never finished", context do
      store = open!(context)
      second = deploy!(context, store, "0.2.0")
      third = stage!(context, store, "0.3.0")
      File.mkdir_p!(Path.join(store.dir, "staging/abc/lib"))
      File.mkdir_p!(Path.join(store.dir, "trash/def/lib"))

      store = reopen!(store)
      assert Store.current(store) == second
      refute File.exists?(third.root)
      assert File.ls!(Path.join(store.dir, "staging")) == []
      assert File.ls!(Path.join(store.dir, "trash")) == []
    end

    test "falls back when the current release was deleted by hand", context do
      store = open!(context)
      second = deploy!(context, store, "0.2.0")
      third = deploy!(context, store, "0.3.0")
      File.rm_rf!(third.root)

      {store, log} = with_log(fn -> reopen!(store) end)
      assert log =~ "gone from the store"
      assert Store.current(store) == second

      assert [%{kind: :boot, outcome: {:error, "it is gone from the store"}} | _older] =
               Store.history(store)
    end

    test "answers a damaged state file with an error", context do
      store = open!(context)
      _second = deploy!(context, store, "0.2.0")
      path = Path.join(store.dir, "state")
      whole = File.read!(path)
      :ok = Store.close(store)

      for cut <- Enum.take_every(0..(byte_size(whole) - 1), 17) do
        File.write!(path, binary_part(whole, 0, cut))
        assert {:error, {:corrupt_store, ^path, why}} = Store.open(context.dir, context.base)
        assert why in [:format, :checksum]
      end

      for at <- Enum.take_every(0..(byte_size(whole) - 1), 13) do
        {before, <<byte, rest::binary>>} = :erlang.split_binary(whole, at)
        File.write!(path, [before, Bitwise.bxor(byte, 1), rest])
        assert {:error, {:corrupt_store, ^path, _why}} = Store.open(context.dir, context.base)
      end

      File.write!(path, whole)
      assert {:ok, _store} = Store.open(context.dir, context.base)
    end
  end

  describe "default_dir" do
    test "takes the option, the environment, the release, the temporary directory", context do
      root = context.base.root
      env = %{"BEAM_DEPLOY_DIR" => "/given", "RELEASE_ROOT" => root}
      options = [node: :"blue@127.0.0.1"]
      assert Store.default_dir(env, :my_app, [dir: "/opt/x"] ++ options) == {:ok, "/opt/x/blue"}
      assert Store.default_dir(env, :my_app, options) == {:ok, "/given/blue"}
      beside = Path.join(root, "beam_deploy/blue")

      assert Store.default_dir(Map.delete(env, "BEAM_DEPLOY_DIR"), :my_app, options) ==
               {:ok, beside}

      assert {:volatile, dir} =
               Store.default_dir(%{"RELEASE_ROOT" => "/nowhere"}, :my_app, options)

      assert Path.dirname(Path.dirname(dir)) == System.tmp_dir!()
      assert {:ok, "/given/my_app"} = Store.default_dir(env, :my_app, node: :nonode@nohost)
    end
  end

  # Staging, promoting and pruning go on in another OS process, which is killed wherever it happens to be.
  test "kill -9 at any instant leaves a whole release current", context do
    tarballs =
      for version <- ["0.2.0", "0.3.0", "0.4.0"] do
        files = for n <- 1..60, do: {"lib/dep-1.0/ebin/M#{n}.beam", "#{version} #{n}"}

        write!(
          Path.join(context.tmp_dir, "#{version}.tar.gz"),
          release(version: version, files: files)
        )
      end

    instants = String.to_integer(System.get_env("BEAM_DEPLOY_KILLS", "40"))

    leftovers = fn ->
      for dir <- ["staging", "trash"],
          {:ok, names} <- [File.ls(Path.join(context.dir, dir))],
          do: names
    end

    Enum.reduce(1..instants, {0, seed(2026)}, fn round, {interrupted, state} ->
      worker = StoreWorker.start(context.dir, context.base.root, tarballs)
      {milliseconds, state} = :rand.uniform_s(60, state)
      Process.sleep(milliseconds)
      :ok = StoreWorker.kill(worker)
      amid_work = if Enum.all?(leftovers.(), &(&1 == [])), do: 0, else: 1

      store = open!(context)
      current = Store.current(store)
      listed = for release <- Store.releases(store), do: Path.basename(release.root)
      assert staged(store) == Enum.sort(listed -- ["base"]), "seed 2026, round #{round}"
      assert File.ls!(Path.join(store.dir, "staging")) == []
      assert File.ls!(Path.join(store.dir, "trash")) == []

      assert (File.ls!(store.dir) -- ["state.new"]) |> Enum.sort() ==
               ~w(lock releases staging state trash)

      if current != context.base do
        for n <- 1..60 do
          path = Path.join(current.root, "lib/dep-1.0/ebin/M#{n}.beam")
          assert File.read!(path) == "#{current.version} #{n}"
        end
      end

      :ok = Store.close(store)
      {interrupted + amid_work, state}
    end)
    |> then(fn {interrupted, _state} -> assert interrupted > 0, "no kill met any work" end)
  end

  if @root? do
    test "a full disk is told, and given back", context do
      mount = Path.join(context.tmp_dir, "small")
      :ok = Root.mount_disk(mount, "size=2m,mode=0700")

      {:ok, store} = Store.open(Path.join(mount, "store"), context.base)
      used = fn -> elem(System.cmd("du", ["-s", mount]), 0) end
      before = used.()
      {noise, _state} = :rand.bytes_s(3_000_000, seed(1))
      path = Path.join(context.tmp_dir, "large.tar.gz")
      write!(path, release(files: [{"lib/large", noise}]))

      assert Archive.stage(path, store, otp_app: :my_app) == {:error, {:extract_failed, :enospc}}
      assert used.() == before

      small = write!(path, release())
      assert {:ok, release} = Archive.stage(small, store, otp_app: :my_app)
      :ok = Store.promote(store, release, swap(nil, release))
      assert Store.current(store) == release
      :ok = Store.close(store)
    end
  end
end
