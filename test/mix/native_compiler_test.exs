defmodule BeamDeploy.NativeCompilerTest do
  # Where `mix compile` takes the native library from, and what it says where there is none. Downloads come from a server on
  # loopback.
  use ExUnit.Case, async: true

  @moduletag :tmp_dir

  alias BeamDeploy.MixProject.Precompiled
  alias BeamDeploy.Test.ReleasePage

  setup %{tmp_dir: tmp_dir} do
    project = Path.join(tmp_dir, "project")
    tools = Path.join(tmp_dir, "tools")
    File.mkdir_p!(Path.join(project, "native/beam_deploy_nif"))
    File.mkdir_p!(tools)

    for file <-
          ~w(mix.exs native/compiler.exs native/precompiled.exs native/beam_deploy_nif/Cargo.toml),
        do: File.cp!(file, Path.join(project, file))

    # All that is on the path, but for cargo.
    for directory <- String.split(System.fetch_env!("PATH"), ":"),
        {:ok, names} <- [File.ls(directory)],
        name <- names,
        name != "cargo",
        do: File.ln_s(Path.join(directory, name), Path.join(tools, name))

    %{project: project, tools: tools}
  end

  defp compile(%{project: project, tools: tools}, environment \\ []) do
    System.cmd(Path.join(tools, "mix"), ["compile"],
      cd: project,
      env: [
        {"PATH", tools},
        {"BEAM_DEPLOY_BUILD", nil},
        {"MIX_ENV", "prod"},
        {"MIX_BUILD_PATH", Path.join(project, "_build")}
        | environment
      ],
      stderr_to_stdout: true
    )
  end

  defp fake_cargo(tools, script) do
    path = Path.join(tools, "cargo")
    File.write!(path, "#!/bin/sh\n" <> script)
    File.chmod!(path, 0o755)
  end

  test "without cargo it says in two lines what to install", context do
    assert {output, 1} = compile(context)

    assert output =~
             "beam_deploy: cargo was not found, and its native library has to be built.\nInstall Rust 1.91.0 or later"
  end

  test "with a cargo that is too old as well", context do
    fake_cargo(context.tools, "echo 'cargo 1.63.0 (fd9c4297c 2022-07-01)'")
    assert {output, 1} = compile(context)

    assert output =~
             "beam_deploy: Rust 1.63.0 is too old, and its native library has to be built.\nInstall Rust 1.91.0 or later"
  end

  test "a build that fails fails the compilation", context do
    fake_cargo(
      context.tools,
      "[ \"$1\" = --version ] && echo 'cargo 1.95.0' || { echo 'no network'; exit 101; }"
    )

    assert {output, 1} = compile(context)
    assert output =~ "no network"
    assert output =~ "cargo build ended with status 101"
  end

  describe "a precompiled library" do
    @contents "the library"

    setup context do
      {:ok, target} = running_target()
      version = Mix.Project.config()[:version]
      name = Precompiled.name(version, target)
      served = Path.join(context.tmp_dir, "served")
      File.mkdir_p!(served)
      File.write!(Path.join(served, name), :zlib.gzip(@contents))

      %{
        name: name,
        served: served,
        library: Path.join(context.project, "priv/native/beam_deploy_nif.so"),
        from_server: [{"BEAM_DEPLOY_PRECOMPILED_URL", ReleasePage.start(served) <> "/"}]
      }
    end

    test "is downloaded, checked and put into place, without cargo", context do
      name_checksum(context, sha256(context))
      assert {output, 0} = compile(context, context.from_server)
      assert output =~ "Downloaded the native library of beam_deploy, #{context.name}"
      assert File.read!(context.library) == @contents
      assert File.ls!(Path.dirname(context.library)) == ["beam_deploy_nif.so"]

      # And once.
      File.rm_rf!(context.served)
      assert {output, 0} = compile(context, context.from_server)
      refute output =~ "Downloaded"
    end

    test "with another checksum is refused, not built instead, and nothing is put into place",
         context do
      name_checksum(context, String.duplicate("0", 64))
      fake_cargo(context.tools, "echo 'cargo 1.95.0'; touch #{context.tmp_dir}/built")
      assert {output, 1} = compile(context, context.from_server)

      assert output =~
               ~r/^beam_deploy: .*#{context.name} has the SHA-256 #{sha256(context)}, not 0{64}, and was not used.\n.*BEAM_DEPLOY_BUILD=1/m

      refute File.exists?(context.library)
      refute File.exists?(Path.join(context.tmp_dir, "built"))
    end

    test "that is not there is built", context do
      name_checksum(context, sha256(context))
      File.rm_rf!(Path.join(context.served, context.name))
      fake_cargo_that_builds(context)
      assert {output, 0} = compile(context, context.from_server)
      assert output =~ "beam_deploy: no precompiled library: "
      assert output =~ "/#{context.name} answered 404."
      assert File.read!(context.library) =~ "built"
    end

    test "that is not there, without cargo, is an error that says both", context do
      name_checksum(context, sha256(context))
      nobody = [{"BEAM_DEPLOY_PRECOMPILED_URL", "http://127.0.0.1:1"}]
      assert {output, 1} = compile(context, nobody)

      assert output =~
               "no precompiled library: http://127.0.0.1:1/#{context.name} cannot be reached"

      assert output =~ "beam_deploy: cargo was not found, and its native library has to be built."
      refute File.exists?(context.library)
    end

    test "is not asked for where the package does not name its checksum, or one is to be built",
         context do
      fake_cargo_that_builds(context)
      assert {output, 0} = compile(context, context.from_server)
      refute output =~ "precompiled"
      assert File.read!(context.library) =~ "built"

      name_checksum(context, sha256(context))
      File.rm!(context.library)
      assert {output, 0} = compile(context, [{"BEAM_DEPLOY_BUILD", "1"} | context.from_server])
      refute output =~ "Downloaded"
      assert File.read!(context.library) =~ "built"
    end

    test "is named by the script that maintainers run over all of them", context do
      root = Path.join(context.tmp_dir, "project")
      File.mkdir_p!(Path.join(root, "script"))
      File.cp!("script/artefacts.exs", Path.join(root, "script/artefacts.exs"))
      made = Path.join(context.tmp_dir, "made")
      library = Path.join(context.tmp_dir, "library.so")
      File.write!(library, @contents)

      script = fn arguments ->
        System.cmd("elixir", ["script/artefacts.exs" | arguments],
          cd: root,
          stderr_to_stdout: true
        )
      end

      [last | targets] = Precompiled.targets()
      for target <- targets, do: assert({_path, 0} = script.(["pack", target, library, made]))
      assert {output, 1} = script.(["checksums", made])
      assert output =~ last

      assert {_path, 0} = script.(["pack", last, library, made])
      assert {_output, 0} = script.(["checksums", made])
      File.cp!(Path.join(made, context.name), Path.join(context.served, context.name))
      assert {output, 0} = compile(context, context.from_server)
      assert output =~ "Downloaded"
      assert File.read!(context.library) == @contents
    end
  end

  test "targets are named as Rust does" do
    for {architecture, target} <- %{
          "x86_64-pc-linux-gnu" => "x86_64-unknown-linux-gnu",
          "amd64-portbld-linux-gnu" => "x86_64-unknown-linux-gnu",
          "aarch64-unknown-linux-gnu" => "aarch64-unknown-linux-gnu",
          "x86_64-alpine-linux-musl" => "x86_64-unknown-linux-musl",
          "aarch64-apple-darwin23.1.0" => "aarch64-apple-darwin"
        } do
      assert Precompiled.target(architecture) == target
      assert target in Precompiled.targets()
    end

    refute Precompiled.target("armv7l-unknown-linux-gnueabihf") in Precompiled.targets()
    refute Precompiled.target("win32") in Precompiled.targets()
  end

  defp running_target do
    target = Precompiled.target(to_string(:erlang.system_info(:system_architecture)))
    if target in Precompiled.targets(), do: {:ok, target}, else: {:error, target}
  end

  defp sha256(context) do
    :crypto.hash(:sha256, File.read!(Path.join(context.served, context.name)))
    |> Base.encode16(case: :lower)
  end

  defp name_checksum(context, sha256) do
    text = inspect(%{context.name => "sha256:" <> sha256})
    File.write!(Path.join(context.project, "checksum.exs"), text)
  end

  # Leaves what cargo would where cargo would.
  defp fake_cargo_that_builds(context) do
    fake_cargo(context.tools, """
    [ "$1" = --version ] && { echo 'cargo 1.95.0'; exit; }
    mkdir -p '#{context.project}/_build/native/release'
    echo built >'#{context.project}/_build/native/release/libbeam_deploy_nif.so'
    """)
  end
end
