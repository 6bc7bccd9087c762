defmodule BeamDeploy.NativeCompilerTest do
  # What `mix compile` says where the native library cannot be built.
  use ExUnit.Case, async: true

  @moduletag :tmp_dir
  @moduletag timeout: 120_000

  setup %{tmp_dir: tmp_dir} do
    project = Path.join(tmp_dir, "project")
    tools = Path.join(tmp_dir, "tools")
    File.mkdir_p!(Path.join(project, "native/beam_deploy_nif"))
    File.mkdir_p!(tools)

    for file <- ["mix.exs", "native/compiler.exs", "native/beam_deploy_nif/Cargo.toml"],
        do: File.cp!(file, Path.join(project, file))

    # All that is on the path, but for cargo.
    for directory <- String.split(System.fetch_env!("PATH"), ":"),
        {:ok, names} <- [File.ls(directory)],
        name <- names,
        name != "cargo",
        do: File.ln_s(Path.join(directory, name), Path.join(tools, name))

    %{project: project, tools: tools}
  end

  defp compile(%{project: project, tools: tools}) do
    System.cmd(Path.join(tools, "mix"), ["compile"],
      cd: project,
      env: [
        {"PATH", tools},
        {"MIX_ENV", "prod"},
        {"MIX_BUILD_PATH", Path.join(project, "_build")}
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
end
