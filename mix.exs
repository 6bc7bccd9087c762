Code.require_file("native/compiler.exs", __DIR__)

defmodule BeamDeploy.MixProject do
  use Mix.Project

  @version "0.1.0"
  @source_url "https://github.com/beam-deploy/beam_deploy"

  def project do
    [
      app: :beam_deploy,
      version: @version,
      elixir: "~> 1.14",
      compilers: [:beam_deploy_native] ++ Mix.compilers(),
      elixirc_paths: elixirc_paths(Mix.env()),
      test_ignore_filters: [~r"^test/(fixtures|support)/"],
      xref: xref(),
      elixirc_options: [no_warn_undefined: [:ssl]],
      start_permanent: Mix.env() == :prod,
      deps: deps(),
      description: "Zero-downtime deploys on a single host: blue-green swaps and hot upgrades.",
      package: package(),
      source_url: @source_url,
      docs: docs()
    ]
  end

  def application do
    [extra_applications: [:logger, :crypto]]
  end

  # Called only where they are: :ssl for sockets that are its own, and the servers that an application has, which Elixir
  # finds and names when it has compiled them before. Elixir 1.20 deprecates this way of saying so; the other one,
  # :elixirc_options, is not enough for 1.14.
  @optional [:ssl, :ranch, :cowboy_stream, ThousandIsland, Plug.Conn, MIME, Phoenix.LiveView]

  defp xref do
    if Version.match?(System.version(), "< 1.20.0-dev"), do: [exclude: @optional], else: []
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  # Compiling, testing and running need no dependency. The developers' tools are listed only where Hex
  # is installed: a Hex dependency stops `mix test` on a machine without it, even with `only: :dev`.
  defp deps do
    if Code.ensure_loaded?(Hex) do
      [
        {:ex_doc, "~> 0.34", only: :dev, runtime: false},
        {:credo, "~> 1.7", only: :dev, runtime: false},
        {:dialyxir, "~> 1.4", only: :dev, runtime: false}
      ]
    else
      []
    end
  end

  defp package do
    [
      licenses: ["Apache-2.0"],
      links: %{"GitHub" => @source_url},
      files: ~w(
        lib guides/*.md priv/*.sh priv/static/*.js mix.exs .formatter.exs README.md CHANGELOG.md LICENSE
        checksum.exs native/compiler.exs native/precompiled.exs native/beam_deploy_nif/src native/beam_deploy_nif/Cargo.toml
        native/beam_deploy_nif/Cargo.lock
      )
    ]
  end

  defp docs do
    [
      main: "readme",
      source_ref: "v#{@version}",
      assets: %{"guides/images" => "guides/images"},
      extras: ["README.md"] ++ guides() ++ ["CHANGELOG.md", "LICENSE"],
      groups_for_extras: [Guides: ~r"guides/"],
      groups_for_modules: [
        "For your application": [BeamDeploy.Plug, BeamDeploy.Static, BeamDeploy.Release.Step]
      ]
    ]
  end

  # In the order in which they are read.
  defp guides do
    first =
      for name <- ~w(getting-started systemd docker listeners-and-draining handoff hot-upgrades),
          path = "guides/#{name}.md",
          File.regular?(path),
          do: path

    first ++ (Path.wildcard("guides/*.md") -- first)
  end
end
