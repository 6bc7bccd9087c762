defmodule Mix.Tasks.BeamDeploy.Install do
  @shortdoc "Shows the edits that a project needs for BeamDeploy, or makes them"

  @moduledoc """
  Shows the edits that a project needs for BeamDeploy.

      $ mix beam_deploy.install
      $ mix beam_deploy.install --yes

  With `--yes` it makes them:

    * `mix.exs`: the dependency, and a release whose steps make a tarball and `bin/NAME_deploy`
    * the application's module: `BeamDeploy.start_link/1` starts the supervision tree
    * `rel/env.sh.eex`: `BEAM_DEPLOY=1` in the environment of the release

  What is already there is left alone, so it may be run again. So is a file that does not have the shape that `mix new` and
  `mix phx.new` give it: the task says what to write there. Its exit status is then 1 with `--yes`.
  """

  use Mix.Task

  alias BeamDeploy.Install

  @environment "rel/env.sh.eex"

  @impl true
  def run(arguments) do
    yes? = parse!(arguments)

    if Mix.Project.umbrella?(),
      do: Mix.raise("Run this in the application of the umbrella that starts the endpoint")

    app = Mix.Project.config()[:app]
    results = Enum.map(edits(app), &report(&1, yes?))

    cond do
      :manual in results and yes? -> exit({:shutdown, 1})
      :edit in results and not yes? -> info("`mix beam_deploy.install --yes` makes these edits.")
      true -> :ok
    end
  end

  defp parse!(arguments) do
    case OptionParser.parse(arguments, strict: [yes: :boolean]) do
      {options, [], []} -> Keyword.get(options, :yes, false)
      _other -> Mix.raise("usage: mix beam_deploy.install [--yes]")
    end
  end

  defp edits(app) do
    [
      {"mix.exs", &Install.dependency(&1, requirement()), "in deps: " <> dependency()},
      {"mix.exs", &Install.release(&1, app),
       "in project, among the options of the release: steps: [:assemble, &BeamDeploy.Release.Step.run/1, :tar]"},
      {application_file(), &Install.application(&1, app),
       "in start/2, instead of Supervisor.start_link(children, opts):\n" <> start(app)},
      {@environment, &Install.environment/1, "export BEAM_DEPLOY=1"}
    ]
  end

  defp dependency, do: inspect({:beam_deploy, requirement()})

  defp requirement do
    version = Version.parse!(to_string(Application.spec(:beam_deploy, :vsn) || "0.1.0"))
    "~> #{version.major}.#{version.minor}"
  end

  defp start(app) do
    """
        BeamDeploy.start_link(
          otp_app: #{inspect(app)},
          start: {Supervisor, :start_link, [children, opts]}
        )\
    """
  end

  # The file that defines the module of `mod:`. By its contents: the name of a file is anybody's choice.
  defp application_file do
    with {module, _arguments} <- Keyword.get(Mix.Project.get!().application(), :mod) do
      definition = ~r/^\s*defmodule\s+#{Regex.escape(inspect(module))}\s+do\b/m

      Mix.Project.config()[:elixirc_paths]
      |> Enum.flat_map(&Path.wildcard(Path.join(&1, "**/*.ex")))
      |> Enum.find(&(File.read!(&1) =~ definition))
    end
  end

  defp report({nil, _edit, how}, _yes?),
    do: by_hand("your application's module (`mod:` in mix.exs)", how)

  defp report({path, edit, how}, yes?) do
    source = if File.regular?(path), do: File.read!(path)

    case edit.(source) do
      :unchanged ->
        info("#{path} needs nothing here")
        :unchanged

      :manual ->
        by_hand(path, how)

      {:ok, edited} ->
        info(path)
        show(source || "", edited)
        if yes?, do: write!(path, edited)
        :edit
    end
  end

  defp by_hand(path, how) do
    info("#{path} is not as this task knows it; write there yourself, #{how}")
    :manual
  end

  defp show(old, new) do
    for {kind, lines} <- List.myers_difference(String.split(old, "\n"), String.split(new, "\n")),
        kind != :eq,
        line <- lines,
        do: info("  #{if kind == :ins, do: "+", else: "-"} #{line}")
  end

  defp write!(path, text) do
    File.mkdir_p!(Path.dirname(path))
    File.write!(path, text)
  end

  defp info(text), do: Mix.shell().info(text)
end
