defmodule Example.MixProject do
  use Mix.Project

  def project do
    [
      app: :example,
      # Each click makes a new version of the same source.
      version: System.get_env("DEMO_VERSION", "0.1.0"),
      elixir: "~> 1.14",
      start_permanent: Mix.env() == :prod,
      deps: deps(),
      releases: [example: [include_executables_for: [:unix], steps: [:assemble, :tar]]]
    ]
  end

  def application do
    [mod: {Example.Application, []}, extra_applications: [:logger]]
  end

  defp deps do
    [
      {:phoenix, "~> 1.7.14"},
      {:phoenix_live_view, "~> 1.0"},
      {:bandit, "~> 1.5"},
      {:jason, "~> 1.4"},
      {:beam_deploy, path: ".."}
    ]
  end
end
