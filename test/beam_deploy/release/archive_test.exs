defmodule BeamDeploy.Release.ArchiveTest do
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Tarball

  alias BeamDeploy.Release
  alias BeamDeploy.Release.{Archive, Platform, Store}

  @moduletag :tmp_dir

  setup %{tmp_dir: tmp} do
    {:ok, base} = Release.read(release_on_disk!(Path.join(tmp, "base"), version: "0.1.0"))
    {:ok, store} = Store.open(Path.join(tmp, "store"), base)
    on_exit(fn -> Store.close(store) end)
    {:ok, store: store, tarball: Path.join(tmp, "release.tar.gz")}
  end

  defp stage(context, options \\ []),
    do: Archive.stage(context.tarball, context.store, Keyword.put_new(options, :otp_app, :my_app))

  defp stage_entries(context, entries, options \\ []) do
    write!(context.tarball, entries)
    stage(context, options)
  end

  # Whatever happened, nothing but the releases that were staged is left, and nothing was written elsewhere.
  defp assert_nothing_left(context) do
    for dir <- ["staging", "releases", "trash"] do
      assert File.ls!(Path.join(context.store.dir, dir)) == []
    end

    expected = ["base", "store"]
    assert Enum.sort(File.ls!(context.tmp_dir)) -- ["release.tar.gz"] == expected
  end

  defp assert_refused(context, expected, options \\ []) do
    assert stage(context, options) == {:error, expected}
    assert_nothing_left(context)
  end

  defp assert_unsafe(context, entries, entry, why, options \\ []) do
    write!(context.tarball, entries)
    assert_refused(context, {:unsafe_archive, entry, why}, options)
  end

  describe "a release" do
    test "is staged whole, with its modes", context do
      assert {:ok, release} =
               stage_entries(context, release(files: [{"lib/dep-1.0/priv/ü", "x"}]))

      assert %Release{name: "my_app", version: "0.2.0", bundled_erts?: false} = release
      assert Path.dirname(release.root) == Path.join(context.store.dir, "releases")
      assert {:ok, release.sha256} == Archive.sha256(context.tarball)
      assert File.read!(Path.join(release.root, "lib/dep-1.0/priv/ü")) == "x"
      assert Bitwise.band(File.stat!(Path.join(release.root, "bin/my_app")).mode, 0o7777) == 0o755
      assert File.ls!(Path.join(context.store.dir, "staging")) == []
    end

    test "that is staged already is taken as it is", context do
      {:ok, first} = stage_entries(context, release())
      inode = File.stat!(Path.join(first.root, "bin/my_app")).inode
      assert stage(context) == {:ok, first}
      assert File.stat!(Path.join(first.root, "bin/my_app")).inode == inode
      assert length(File.ls!(Path.join(context.store.dir, "releases"))) == 1
    end

    test "of the same version and other contents lies beside it", context do
      {:ok, first} = stage_entries(context, release())
      {:ok, second} = stage_entries(context, release(files: [{"lib/more", "1"}]))
      assert first.version == second.version
      refute Release.id(first) == Release.id(second)
      refute first.root == second.root
      assert File.dir?(first.root)
    end

    test "keeps only permission bits", context do
      entries =
        [entry("lib/tool", "x", mode: 0o6755), directory("lib/closed", 0o000)] ++ release()

      {:ok, release} = stage_entries(context, entries)
      assert Bitwise.band(File.stat!(Path.join(release.root, "lib/tool")).mode, 0o7777) == 0o755
      assert Bitwise.band(File.stat!(Path.join(release.root, "lib/closed")).mode, 0o700) == 0o700
    end

    test "may hold links that stay inside", context do
      entries = [
        entry("lib/a/file", "contents"),
        symlink("lib/link", "a/file"),
        symlink("lib/b/up", "../../lib/./a"),
        symlink("lib/dangling", "nothing/here"),
        hard_link("lib/hard", "lib/a/file")
      ]

      {:ok, release} = stage_entries(context, entries ++ release())
      assert File.read!(Path.join(release.root, "lib/link")) == "contents"
      assert File.read!(Path.join(release.root, "lib/b/up/file")) == "contents"
      assert File.read!(Path.join(release.root, "lib/hard")) == "contents"
    end

    test "may have long names, by either convention", context do
      long = "lib/" <> String.duplicate("directory/", 20) <> "file"
      other = "lib/" <> String.duplicate("verzeichnis/", 20) <> "ü"

      entries = [
        gnu_long_name(long),
        entry(String.slice(long, 0, 100), "gnu"),
        pax(path: other, mtime: "1.5"),
        entry("short", "pax"),
        entry("lib/after", "its own name")
      ]

      {:ok, release} = stage_entries(context, entries ++ release())
      assert File.read!(Path.join(release.root, long)) == "gnu"
      assert File.read!(Path.join(release.root, other)) == "pax"
      assert File.read!(Path.join(release.root, "lib/after")) == "its own name"
      refute File.exists?(Path.join(release.root, "short"))
    end

    test "may come as several gzip members", context do
      tar = tar(release())
      {first, second} = String.split_at(tar, 1000)
      File.write!(context.tarball, [:zlib.gzip(first), :zlib.gzip(second)])
      assert {:ok, %Release{version: "0.2.0"}} = stage(context)
    end

    test "may name its entries with a leading dot", context do
      entries = [directory("./"), entry("./lib/file", "x")] ++ release()
      assert {:ok, release} = stage_entries(context, entries)
      assert File.read!(Path.join(release.root, "lib/file")) == "x"
    end
  end

  describe "files shared with the release before" do
    setup context do
      files = [
        {"lib/dep-1.0/ebin/Same.beam", "same"},
        {"lib/dep-1.0/ebin/Other.beam", "version one"},
        {"lib/dep-1.0/priv/config", "same"},
        {"lib/dep-1.0/ebin/Long.beam", String.duplicate("a", 500_000)}
      ]

      {:ok, first} = stage_entries(context, release(version: "0.2.0", files: files))
      {:ok, first: first}
    end

    test "are those of code alone, and equal", context do
      files = [
        {"lib/dep-1.0/ebin/Same.beam", "same"},
        {"lib/dep-1.0/ebin/Other.beam", "version two"},
        {"lib/dep-1.0/priv/config", "same"},
        {"lib/dep-1.0/ebin/Long.beam", String.duplicate("a", 499_999) <> "b"},
        {"lib/dep-1.0/ebin/New.beam", "new"}
      ]

      entries = release(version: "0.3.0", files: files)
      {:ok, second} = stage_entries(context, entries, link_from: context.first.root)

      shared? = fn path ->
        inode = &File.stat!(Path.join(&1.root, path)).inode
        inode.(context.first) == inode.(second)
      end

      assert shared?.("lib/dep-1.0/ebin/Same.beam")
      refute shared?.("lib/dep-1.0/ebin/Other.beam")
      refute shared?.("lib/dep-1.0/ebin/Long.beam")
      refute shared?.("lib/dep-1.0/priv/config")

      for {path, contents} <- files do
        assert File.read!(Path.join(second.root, path)) == contents
      end

      assert File.read!(Path.join(context.first.root, "lib/dep-1.0/ebin/Other.beam")) ==
               "version one"
    end

    test "outlive the release they came from", context do
      files = [{"lib/dep-1.0/ebin/Same.beam", "same"}]

      {:ok, second} =
        stage_entries(context, release(version: "0.3.0", files: files),
          link_from: context.first.root
        )

      :ok = Store.discard(context.store, context.first)
      refute File.exists?(context.first.root)
      assert File.read!(Path.join(second.root, "lib/dep-1.0/ebin/Same.beam")) == "same"
    end
  end

  describe "a path" do
    test "with nothing there", context do
      assert_refused(context, :release_not_found)
      assert Archive.verify(Path.join(context.tarball, "below")) == {:error, :release_not_found}
    end

    test "of a directory", context do
      assert Archive.verify(context.tmp_dir) == {:error, :release_not_found}
    end

    @tag skip: System.get_env("USER") == "root" or BeamDeploy.Test.Root.root?()
    test "that may not be read", context do
      write!(context.tarball, release())
      File.chmod!(context.tarball, 0o000)
      assert_refused(context, {:unreadable, :eacces})
    end
  end

  describe "a damaged file" do
    test "that is not gzip", context do
      File.write!(context.tarball, "PK" <> String.duplicate("x", 1000))
      assert_refused(context, {:extract_failed, "not a gzip file"})
    end

    test "that is empty", context do
      File.write!(context.tarball, "")
      assert_refused(context, {:extract_failed, "not a gzip file"})
    end

    test "cut at any place", context do
      whole = File.read!(write!(context.tarball, release(files: [{"lib/noise", noise(20_000)}])))

      for cut <- Enum.take_every(2..(byte_size(whole) - 1), 401) ++ [byte_size(whole) - 1] do
        File.write!(context.tarball, binary_part(whole, 0, cut))
        assert {:error, {:extract_failed, message}} = stage(context)
        assert is_binary(message)
        assert_nothing_left(context)
      end
    end

    test "with one bit flipped", context do
      whole = File.read!(write!(context.tarball, release(files: [{"lib/noise", noise(20_000)}])))

      # The ten bytes of the header hold a time and other things that nothing depends on.
      for at <- Enum.take_every(10..(byte_size(whole) - 1), 307) do
        {before, <<byte, rest::binary>>} = :erlang.split_binary(whole, at)
        File.write!(context.tarball, [before, Bitwise.bxor(byte, 0x10), rest])
        assert {:error, reason} = stage(context)
        assert elem(reason, 0) in [:extract_failed, :unsafe_archive]
        assert_nothing_left(context)
      end
    end

    test "with something behind its end", context do
      write!(context.tarball, release())
      File.write!(context.tarball, "garbage", [:append])
      assert {:error, {:extract_failed, message}} = stage(context)
      assert is_binary(message)
      assert_nothing_left(context)
    end

    test "with something behind the end of its tar", context do
      File.write!(context.tarball, :zlib.gzip(tar(release()) <> "garbage"))
      assert_refused(context, {:extract_failed, "data after the end of the archive"})
    end

    test "is told by its checksum where one is given", context do
      write!(context.tarball, release())
      {:ok, expected} = Archive.sha256(context.tarball)
      File.write!(context.tarball, "garbage", [:append])
      {:ok, actual} = Archive.sha256(context.tarball)
      assert_refused(context, {:checksum_mismatch, expected, actual}, sha256: expected)
    end
  end

  test "sha256: is compared whatever its case", context do
    write!(context.tarball, release())
    {:ok, actual} = Archive.sha256(context.tarball)
    other = String.duplicate("0", 64)
    assert_refused(context, {:checksum_mismatch, other, actual}, sha256: other)
    assert {:ok, %Release{sha256: ^actual}} = stage(context, sha256: String.upcase(actual))
  end

  describe "a tar of something else" do
    test "is no release", context do
      write!(context.tarball, [entry("README", "hello")])
      assert_refused(context, {:invalid_release, :not_a_release})

      assert Archive.inspect_release(context.tarball) ==
               {:error, {:invalid_release, :not_a_release}}
    end

    test "that is empty", context do
      write!(context.tarball, [])
      assert_refused(context, {:invalid_release, :not_a_release})
    end

    test "with a version that leads elsewhere", context do
      write!(context.tarball, [entry("releases/start_erl.data", "13.1 ../../../etc")])
      assert_refused(context, {:invalid_release, {:malformed, "releases/start_erl.data"}})
    end

    test "with a broken .rel file", context do
      for text <- [
            "",
            "{release,",
            "{release,{\"a\",\"b\"},{erts,\"13\"},[{kernel}]}.",
            "\"",
            <<255>>
          ] do
        write!(context.tarball, [
          entry("releases/1.0.0/my_app.rel", text),
          entry("releases/start_erl.data", "13.1 1.0.0")
        ])

        assert_refused(context, {:invalid_release, {:malformed, "releases/1.0.0/my_app.rel"}})
      end
    end

    test "the release of another application", context do
      write!(context.tarball, release(name: "other_app"))
      names = ["beam_deploy", "kernel", "other_app", "stdlib"]
      assert_refused(context, {:invalid_release, {:other_app, names}})
    end

    test "a release without BeamDeploy", context do
      write!(context.tarball, release(applications: ["my_app", "kernel"]))
      assert_refused(context, {:invalid_release, :without_beam_deploy})
    end
  end

  describe "a release for another platform" do
    test "of another OTP release, without its own runtime", context do
      write!(context.tarball, release(erts: "99.0"))

      details = %{
        what: :otp_release,
        release: "111",
        running: "#{:erlang.system_info(:otp_release)}",
        file: nil
      }

      assert_refused(context, {:incompatible_release, details})
    end

    test "of another OTP release with its own runtime is fine", context do
      files = [{"erts-99.0/bin/beam.smp", elf(62, "/lib64/ld-linux-x86-64.so.2")}]
      write!(context.tarball, release(erts: "99.0", files: files))
      platform = %{otp_release: "25", binary: %{machine: :x86_64, libc: :glibc}}
      assert {:ok, %Release{bundled_erts?: true}} = stage(context, platform: platform)
    end

    test "with a runtime for another processor", context do
      files = [{"erts-99.0/bin/beam.smp", elf(183, "/lib/ld-linux-aarch64.so.1")}]
      write!(context.tarball, release(erts: "99.0", files: files))
      platform = %{otp_release: "25", binary: %{machine: :x86_64, libc: :glibc}}

      details = %{
        what: :cpu,
        release: :aarch64,
        running: :x86_64,
        file: "erts-99.0/bin/beam.smp"
      }

      assert_refused(context, {:incompatible_release, details}, platform: platform)
    end

    test "with a runtime or a library for another libc", context do
      platform = %{otp_release: "25", binary: %{machine: :x86_64, libc: :glibc}}
      musl = elf(62, "/lib/ld-musl-x86_64.so.1")

      for {file, erts} <- [
            {"erts-99.0/bin/beam.smp", "99.0"},
            {"lib/dep-1.0/priv/native/dep.so", "13.0"}
          ] do
        write!(context.tarball, release(erts: erts, files: [{file, musl}]))
        details = %{what: :libc, release: :musl, running: :glibc, file: file}
        assert_refused(context, {:incompatible_release, details}, platform: platform)
      end
    end

    test "among libraries of which one is ours is fine", context do
      platform = %{otp_release: "25", binary: %{machine: :x86_64, libc: :glibc}}

      files = [
        {"lib/dep-1.0/priv/musl.so", elf(62, "/lib/ld-musl-x86_64.so.1")},
        {"lib/dep-1.0/priv/glibc.so", elf(62, "/lib64/ld-linux-x86-64.so.2")},
        {"lib/dep-1.0/priv/text.so", "no library"}
      ]

      write!(context.tarball, release(erts: "13.0", files: files))
      assert {:ok, _release} = stage(context, platform: platform)
    end

    test "is compared with the running VM" do
      assert %{otp_release: otp} = running = Platform.running()
      assert otp == System.otp_release()

      if :os.type() == {:unix, :linux} do
        assert %{machine: machine} = running.binary
        assert machine != nil
      end
    end
  end

  describe "an unsafe entry" do
    test "with ..", context do
      for name <- ["../evil", "lib/../../evil", "lib/.."] do
        assert_unsafe(context, [entry(name, "x") | release()], name, :parent_dir)
      end
    end

    test "with an absolute path", context do
      name = Path.join(context.tmp_dir, "evil")
      name = if byte_size(name) > 100, do: "/tmp/beam_deploy_evil", else: name
      assert_unsafe(context, [entry(name, "x") | release()], name, :absolute_path)
      assert_unsafe(context, [pax(path: "/evil"), entry("ok", "x")], "/evil", :absolute_path)
      assert_unsafe(context, [gnu_long_name("/evil"), entry("ok", "x")], "/evil", :absolute_path)
    end

    test "that is a symlink out", context do
      for target <- ["..", "/etc/passwd", "../../x", "lib/../..", ""] do
        assert_unsafe(context, [symlink("out", target) | release()], "out", :symlink_escape)
      end

      # Not by the letters: `lib/a` is two levels deep, what it leads to is one.
      entries = [symlink("lib/a", "../x"), directory("x"), symlink("lib/b", "a/../..")]
      assert_unsafe(context, entries, "lib/b", :symlink_escape)
    end

    test "that is a symlink to itself", context do
      assert {:error, {:unsafe_archive, name, :symlink_escape}} =
               stage_entries(context, [symlink("a", "b"), symlink("b", "a")])

      assert name in ["a", "b"]
      assert_nothing_left(context)
    end

    test "that writes through a symlink", context do
      entries = [symlink("lib", context.tmp_dir |> Path.basename()), entry("lib/evil", "x")]
      assert_unsafe(context, entries, "lib/evil", :symlink_escape)
    end

    test "that is a symlink over a directory with files in it", context do
      entries = [entry("lib/file", "x"), symlink("lib", "/etc")]
      assert_unsafe(context, entries, "lib", :duplicate)
    end

    test "that is a hard link out", context do
      for target <- ["/etc/passwd", "../base/bin/my_app", "nothing", "bin"] do
        entries = [directory("bin"), hard_link("out", target)]
        assert_unsafe(context, entries, "out", :hard_link)
      end

      entries = [symlink("link", "bin"), hard_link("out", "link")]
      assert_unsafe(context, entries, "out", :hard_link)
    end

    test "that is a device or a fifo", context do
      for type <- [?3, ?4, ?6] do
        assert_unsafe(context, [entry("dev", "", type: type)], "dev", :device)
      end
    end

    test "that comes twice", context do
      assert_unsafe(context, [entry("a", "1"), entry("a", "2")], "a", :duplicate)
      assert_unsafe(context, [entry("a", "1"), entry("./a", "2")], "./a" |> normal(), :duplicate)
      assert_unsafe(context, [entry("a", "1"), entry("a/b", "2")], "a/b", :duplicate)
      assert_unsafe(context, [entry("a/b", "1"), entry("a", "2")], "a", :duplicate)
      assert_unsafe(context, [symlink("a", "b"), entry("a", "2")], "a", :duplicate)
    end

    test "of a kind nobody knows", context do
      for type <- [?S, ?V, ?Z] do
        assert_unsafe(context, [entry("a", "1", type: type)], "a", :unsupported)
      end

      entries = [pax("GNU.sparse.major": "1"), entry("a", "1")]
      assert {:error, {:unsafe_archive, _name, :unsupported}} = stage_entries(context, entries)
      assert_nothing_left(context)
    end

    test "with a name that cannot be", context do
      long = String.duplicate("x/", 600)
      assert_unsafe(context, [gnu_long_name(long), entry("a", "")], long, :invalid_name)
      nul = "a\0b"
      assert_unsafe(context, [pax(path: nul), entry("a", "")], nul, :invalid_name)
      assert_unsafe(context, [entry(".", "x")], ".", :invalid_name)
    end
  end

  describe "an archive over the limits" do
    test "of entries", context do
      entries = for n <- 1..11, do: entry("f#{n}", "")

      assert_unsafe(context, entries, "f11", :too_many_entries, limits: %{max_entries: 10})
    end

    test "of size, by what it says", context do
      assert_unsafe(context, [entry("big", "", size: 8_000_000_000)], "big", :too_large)
    end

    test "of size, by what it holds", context do
      entries = for n <- 1..20, do: entry("f#{n}", noise(100_000))
      limits = %{max_bytes: 1_000_000}

      assert {:error, {:unsafe_archive, "f" <> _number, :too_large}} =
               stage_entries(context, entries, limits: limits)

      assert_nothing_left(context)
    end

    test "of the size of its headers", context do
      huge = String.duplicate("x", 100_000)

      assert {:error, {:unsafe_archive, _name, :too_large}} =
               stage_entries(context, [gnu_long_name(huge), entry("a", "")])

      assert {:error, {:unsafe_archive, _name, :too_large}} =
               stage_entries(context, [pax(size: "10"), entry("a", "")])

      assert_nothing_left(context)
    end

    test "of compression", context do
      entries = [entry("zeros", :binary.copy(<<0>>, 20_000_000))]
      limits = %{ratio_from: 1_000_000}
      assert_unsafe(context, entries, "zeros", :ratio, limits: limits)
    end

    test "of compression, behind the end", context do
      File.write!(context.tarball, :zlib.gzip(tar([]) <> :binary.copy(<<0>>, 20_000_000)))
      limits = %{ratio_from: 1_000_000}
      assert {:error, {:unsafe_archive, _name, :ratio}} = stage(context, limits: limits)
      assert_nothing_left(context)
    end
  end

  describe "inspect_release" do
    test "tells what staging would, and writes nothing", context do
      write!(context.tarball, release(files: [{"lib/noise", noise(300_000)}]))
      {:ok, told} = Archive.inspect_release(context.tarball)
      assert_nothing_left(context)
      {:ok, staged} = stage(context)
      keys = [:name, :version, :erts_version, :bundled_erts?, :applications]
      assert Map.take(told, keys) == Map.take(staged, keys)
    end

    test "does not read on once it knows", context do
      emulator = {"erts-13.0/bin/beam.smp", elf(62, "/lib64/ld-linux-x86-64.so.2")}
      entries = release(erts: "13.0", files: [emulator])

      File.write!(
        context.tarball,
        :zlib.gzip(tar([entries, entry("lib/noise", noise(9_000_000))]))
      )

      whole = File.read!(context.tarball)
      File.write!(context.tarball, binary_part(whole, 0, byte_size(whole) - 3_000_000))

      assert {:ok, %{version: "0.2.0", bundled_erts?: true, binary: binary}} =
               Archive.inspect_release(context.tarball)

      assert binary == %{machine: :x86_64, libc: :glibc}
    end
  end

  test "no atom is made of what an archive says", context do
    applications = ["my_app", "beam_deploy"] ++ for n <- 1..200, do: "stranger_#{n}_#{unique()}"
    write!(context.tarball, release(applications: applications))
    {:ok, _warm} = Archive.inspect_release(context.tarball)
    {:ok, _warm} = stage(context)

    for name <- Enum.drop(applications, 2) do
      assert_raise ArgumentError, fn -> String.to_existing_atom(name) end
    end
  end

  test "random trees come out as :erl_tar writes them", context do
    Enum.reduce(1..25, seed(42), fn round, state ->
      {files, state} = random_tree(state)
      input = Path.join(context.tmp_dir, "tree")

      names =
        for {path, {contents, mode}} <- files do
          full = Path.join(input, path)
          File.mkdir_p!(Path.dirname(full))
          File.write!(full, contents)
          File.chmod!(full, mode)
          {String.to_charlist(path), String.to_charlist(full)}
        end

      metadata = [
        {~c"releases/start_erl.data", "13.0 #{round}.0.0"},
        {~c"releases/#{round}.0.0/my_app.rel",
         rel("my_app", "#{round}.0.0", "13.0", ["my_app", "beam_deploy"])}
      ]

      :ok = :erl_tar.create(context.tarball, names ++ metadata, [:compressed])
      platform = %{otp_release: "25", binary: nil}
      {:ok, release} = stage(context, platform: platform)

      for {path, {contents, mode}} <- files do
        staged = Path.join(release.root, path)
        assert File.read!(staged) == contents, "seed 42, round #{round}: #{path}"
        assert Bitwise.band(File.stat!(staged).mode, 0o777) == mode
      end

      expected = MapSet.new(Map.keys(files))
      assert MapSet.subset?(expected, MapSet.new(files_below(release.root)))
      # The two of the metadata and the one that the store adds.
      assert length(files_below(release.root)) == MapSet.size(expected) + 3

      File.rm_rf!(input)
      :ok = Store.promote(context.store, release, %{kind: :blue_green, outcome: :ok})
      state
    end)
  end

  test "no damage to a tar does more than fail", context do
    tar =
      tar(release(files: [{"lib/a/b/c", noise(3_000)}, {"erts-1/bin/beam.smp", elf(62, "/x")}]))

    Enum.reduce(1..300, seed(7), fn round, state ->
      {damaged, state} =
        Enum.reduce(1..4, {tar, state}, fn _damage, {bytes, state} ->
          {at, state} = :rand.uniform_s(byte_size(bytes), state)
          {byte, state} = :rand.uniform_s(256, state)
          {before, <<_old, rest::binary>>} = :erlang.split_binary(bytes, at - 1)
          {<<before::binary, byte - 1, rest::binary>>, state}
        end)

      File.write!(context.tarball, :zlib.gzip(damaged))

      case stage(context) do
        {:ok, release} ->
          :ok = Store.discard(context.store, release)

        {:error, reason} ->
          assert elem(reason, 0) in [
                   :extract_failed,
                   :unsafe_archive,
                   :invalid_release,
                   :incompatible_release
                 ],
                 "seed 7, round #{round}: #{inspect(reason)}"
      end

      assert_nothing_left(context)
      state
    end)
  end

  # --- material

  defp normal("./" <> name), do: name

  defp unique, do: Base.encode16(:crypto.strong_rand_bytes(6))

  defp noise(size) do
    {bytes, _state} = :rand.bytes_s(size, seed(size))
    bytes
  end

  # The header of an ELF program with one segment, its interpreter.
  defp elf(machine, interpreter) do
    path = interpreter <> "\0"

    <<0x7F, "ELF", 2, 1, 1, 0, 0::64, 3::16-little, machine::16-little, 1::32-little, 0::64,
      64::64-little, 0::64, 0::32, 64::16-little, 56::16-little, 1::16-little, 0::16, 0::16,
      0::16, 3::32-little, 4::32-little, 120::64-little, 0::64, 0::64, byte_size(path)::64-little,
      byte_size(path)::64-little, 1::64-little, path::binary>>
  end

  defp random_tree(state) do
    {count, state} = :rand.uniform_s(40, state)

    Enum.reduce(1..count, {%{}, state}, fn number, {files, state} ->
      {depth, state} = :rand.uniform_s(12, state)
      {width, state} = :rand.uniform_s(25, state)
      {size, state} = random_size(state)
      {contents, state} = :rand.bytes_s(size, state)
      {executable, state} = :rand.uniform_s(2, state)
      {letter, state} = :rand.uniform_s(3, state)
      part = String.duplicate(Enum.at(["a", "ü", "b c"], letter - 1), width)
      path = Path.join(List.duplicate(part, depth) ++ ["f#{number}.beam"])

      # With the way to it, no path may be longer than a system takes.
      path = if byte_size(path) > 700, do: "short/f#{number}", else: path
      {Map.put(files, path, {contents, Enum.at([0o644, 0o755], executable - 1)}), state}
    end)
  end

  defp random_size(state) do
    {kind, state} = :rand.uniform_s(5, state)
    most = Enum.at([1, 512, 513, 10_000, 400_000], kind - 1)
    {size, state} = :rand.uniform_s(most, state)
    {size - 1, state}
  end

  defp files_below(root) do
    root
    |> Path.join("**")
    |> Path.wildcard(match_dot: true)
    |> Enum.filter(&File.regular?/1)
    |> Enum.map(&Path.relative_to(&1, root))
  end
end
