defmodule BeamDeploy.PackageTest do
  # Just the files of the package, as a dependency of a project that `mix new` has made, without Rust on the machine.
  use ExUnit.Case, async: true

  alias BeamDeploy.MixProject.Precompiled
  alias BeamDeploy.Test.ReleasePage

  @moduletag :tmp_dir

  setup context do
    %{
      package: Path.join(context.tmp_dir, "package"),
      project: Path.join(context.tmp_dir, "demo"),
      tools: Path.join(context.tmp_dir, "tools")
    }
  end

  # What Hex puts into a package: directories stand for all that is in them.
  defp package_files do
    for pattern <- Mix.Project.config()[:package][:files],
        path <- Path.wildcard(pattern),
        file <-
          if(File.dir?(path), do: Path.wildcard(path <> "/**", match_dot: true), else: [path]),
        File.regular?(file),
        uniq: true,
        do: file
  end

  test "it holds what is needed and nothing else" do
    files = package_files()

    for needed <- ~w(
          mix.exs LICENSE README.md CHANGELOG.md lib/beam_deploy.ex priv/start_peer.sh native/compiler.exs
          native/precompiled.exs native/beam_deploy_nif/Cargo.toml native/beam_deploy_nif/Cargo.lock
          native/beam_deploy_nif/src/lib.rs guides/getting-started.md
        ),
        do: assert(needed in files)

    assert "checksum.exs" in Mix.Project.config()[:package][:files]

    for file <- files do
      refute file =~ ~r{^(test|bench|script|example|_build|\.ci|\.github|priv/native)/}
      refute file =~ ~r{(\.so|\.beam|\.tar\.gz|/target/)}
    end

    # Without them there would be no guides at all.
    assert Enum.count(files, &String.starts_with?(&1, "guides/")) >= 7
  end

  test "a new project takes it, with a precompiled library, and its release carries it",
       context do
    %{package: package, project: project, tools: tools} = context
    copy(package_files(), package)
    served = serve(context)
    link_tools(tools)

    environment = [
      {"PATH", tools},
      {"MIX_ENV", "prod"},
      {"MIX_BUILD_PATH", Path.join(project, "_build")},
      {"BEAM_DEPLOY_BUILD", nil},
      {"BEAM_DEPLOY_PRECOMPILED_URL", served}
    ]

    run = fn command, arguments, status ->
      {output, ended} =
        System.cmd(Path.join(tools, command), arguments,
          cd: project,
          env: environment,
          stderr_to_stdout: true
        )

      assert {ended, output} == {status, output}
      output
    end

    {_output, 0} = System.cmd("mix", ["new", "--sup", project], stderr_to_stdout: true)
    mix_exs = Path.join(project, "mix.exs")

    listed =
      String.replace(
        File.read!(mix_exs),
        "      # {:dep_from_hexpm",
        ~s(      {:beam_deploy, path: "#{package}"},\n      # {:dep_from_hexpm)
      )

    File.write!(mix_exs, String.replace(listed, ~s(package"},), ~s(package"})))

    assert run.("mix", ["beam_deploy.install"], 0) =~ "makes these edits"
    refute File.read!(mix_exs) =~ "releases:"
    assert run.("mix", ["beam_deploy.install", "--yes"], 0) =~ "BeamDeploy.start_link("

    assert run.("mix", ["beam_deploy.install", "--yes"], 0) =~
             "lib/demo/application.ex needs nothing here"

    assert File.read!(Path.join(package, "priv/native/beam_deploy_nif.so")) ==
             File.read!(library())

    run.("mix", ["release", "--quiet"], 0)
    assert File.regular?(Path.join(project, "_build/demo-0.1.0.tar.gz"))
    release = Path.join(project, "_build/rel/demo/bin")
    assert File.regular?(Path.join(release, "demo_deploy"))

    {output, 0} =
      System.cmd(
        Path.join(release, "demo"),
        [
          "eval",
          ~s|IO.inspect({BeamDeploy.enabled?(), is_integer(BeamDeploy.Native.effective_user())})|
        ],
        stderr_to_stdout: true,
        env: [{"BEAM_DEPLOY", nil}]
      )

    assert output =~ "{true, true}"
  end

  defp library, do: Application.app_dir(:beam_deploy, "priv/native/beam_deploy_nif.so")

  defp copy(files, destination) do
    for file <- files do
      target = Path.join(destination, file)
      File.mkdir_p!(Path.dirname(target))
      File.cp!(file, target)
    end
  end

  # The library that the tests run with, offered as a release page would.
  defp serve(context) do
    served = Path.join(context.tmp_dir, "served")
    File.mkdir_p!(served)
    target = Precompiled.target(to_string(:erlang.system_info(:system_architecture)))
    name = Precompiled.name(Mix.Project.config()[:version], target)
    packed = :zlib.gzip(File.read!(library()))
    File.write!(Path.join(served, name), packed)
    digest = Base.encode16(:crypto.hash(:sha256, packed), case: :lower)

    File.write!(
      Path.join(context.package, "checksum.exs"),
      inspect(%{name => "sha256:" <> digest})
    )

    ReleasePage.start(served)
  end

  defp link_tools(tools) do
    File.mkdir_p!(tools)

    for directory <- String.split(System.fetch_env!("PATH"), ":"),
        {:ok, names} <- [File.ls(directory)],
        name <- names,
        name not in ["cargo", "rustc"],
        do: File.ln_s(Path.join(directory, name), Path.join(tools, name))
  end
end
