defmodule BeamDeploy.InstallTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.Install

  @mix_exs """
  defmodule My.MixProject do
    use Mix.Project

    def project do
      [
        app: :my,
        version: "0.1.0",
        # ünïcode
        deps: deps()
      ]
    end

    defp deps do
      [
        {:phoenix, "~> 1.7"},
        {:bandit, "~> 1.5", only: :prod}
      ]
    end
  end
  """

  @application """
  defmodule My.Application do
    use Application

    @impl true
    def start(_type, _args) do
      children = [
        My.Repo,
        {Phoenix.PubSub, name: My.PubSub},
        # Supervisor.start_link(children, opts)
        MyWeb.Endpoint
      ]

      opts = [strategy: :one_for_one, name: My.Supervisor]
      Supervisor.start_link(children, opts)
    end

    @impl true
    def config_change(changed, _new, removed) do
      MyWeb.Endpoint.config_change(changed, removed)
      :ok
    end
  end
  """

  test "the dependency comes first, and once" do
    assert {:ok, edited} = Install.dependency(@mix_exs, "~> 0.1")
    assert edited =~ ~s(    [\n      {:beam_deploy, "~> 0.1"},\n      {:phoenix, "~> 1.7"},\n)
    assert Install.dependency(edited, "~> 0.1") == :unchanged
    assert String.replace(edited, ~s(      {:beam_deploy, "~> 0.1"},\n), "") == @mix_exs

    for listed <- [~s({:beam_deploy, path: ".."}), ~s({:beam_deploy, "~> 0.1", runtime: true})] do
      source = String.replace(@mix_exs, ~s({:phoenix, "~> 1.7"}), listed)
      assert Install.dependency(source, "~> 0.1") == :unchanged
    end

    short = "defmodule M do\n  def deps, do: []\n  def deps2, do: [:a]\nend\n"
    assert {:ok, edited} = Install.dependency(short, "~> 0.1")
    assert edited =~ ~s|def deps, do: [{:beam_deploy, "~> 0.1"}]\n|
  end

  test "the release gets its steps, whether there is one or not" do
    assert {:ok, edited} = Install.release(@mix_exs, :my)
    assert edited =~ "      # ünïcode\n      releases: [\n        my: [include_exec"
    assert edited =~ "      ],\n      deps: deps()\n"
    assert Install.release(edited, :my) == :unchanged

    with_release = fn text ->
      String.replace(@mix_exs, "deps: deps()", "releases: [#{text}], deps: deps()")
    end

    assert {:ok, edited} = Install.release(with_release.("web: [strip_beams: false]"), :my)
    assert edited =~ ~r/web: \[steps: \[:assemble, .*, :tar\], strip_beams: false\]/
    assert Install.release(with_release.("web: [steps: [:assemble, :tar]]"), :my) == :unchanged
    assert Install.release(with_release.("web: [steps: [:assemble]]"), :my) == :manual
    assert Install.release(with_release.("a: [], b: []"), :my) == :manual
  end

  test "the supervision tree is started by BeamDeploy, and all else stays as it was" do
    assert {:ok, edited} = Install.application(@application, :my)
    assert Install.application(edited, :my) == :unchanged

    call = """
        BeamDeploy.start_link(
          otp_app: :my,
          start: {Supervisor, :start_link, [children, opts]}
        )
    """

    assert String.replace(edited, call, "    Supervisor.start_link(children, opts)\n") ==
             @application
  end

  test "options that are given without brackets get some" do
    source = """
    defmodule My.Application do
      def start(_type, _args) do
        Supervisor.start_link([A, {B, b: 1}], strategy: :one_for_one, name: My.Supervisor)
      end
    end
    """

    assert {:ok, edited} = Install.application(source, :my)

    assert edited =~
             "[[A, {B, b: 1}], [strategy: :one_for_one, name: My.Supervisor]]}\n"
  end

  test "what has another shape is left to a person" do
    for tree <- [
          "children |> Supervisor.start_link(opts)",
          "{:ok, pid} = Supervisor.start_link(children, opts)\n    {:ok, pid}",
          "if a, do: Supervisor.start_link(a, b), else: Supervisor.start_link(c, d)",
          "My.Tree.start_link(children)"
        ] do
      source = "defmodule My do\n  def start(_type, _args) do\n    #{tree}\n  end\nend\n"
      assert Install.application(source, :my) == :manual
    end

    for source <- ["", "defmodule", "def deps, do: Enum.concat([], [])"] do
      assert Install.dependency(source, "~> 0.1") == :manual
      assert Install.release(source, :my) == :manual
      assert Install.application(source, :my) == :manual
    end
  end

  test "the environment of the release is made or added to" do
    assert {:ok, made} = Install.environment(nil)
    assert made =~ ~r/\A#!\/bin\/sh\n/
    assert Install.environment(made) == :unchanged

    assert {:ok, added} = Install.environment("#!/bin/sh\n# BEAM_DEPLOY=1\nexport A=1\n")
    assert String.starts_with?(added, "#!/bin/sh\n# BEAM_DEPLOY=1\nexport A=1\n")

    assert {"1", 0} =
             System.cmd("sh", ["-c", added <> "printf %s $BEAM_DEPLOY"],
               env: [{"BEAM_DEPLOY", nil}]
             )

    assert {"0", 0} =
             System.cmd("sh", ["-c", added <> "printf %s $BEAM_DEPLOY"],
               env: [{"BEAM_DEPLOY", "0"}]
             )
  end
end
