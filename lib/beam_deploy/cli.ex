defmodule BeamDeploy.CLI do
  @moduledoc false
  # Responsible for: the commands of bin/NAME_deploy, which run on the parent with the terminal of whoever typed them.
  # Not for: what they ask for.

  alias BeamDeploy.Error

  @usage """
  Usage: NAME_deploy COMMAND

    upgrade TARBALL [--sha256 DIGEST]   swap to the release in a tarball
    hot TARBALL [--force] [--config] [--supervisors]
                                        replace its changed modules inside the running node
    plan TARBALL                        what would change, and how it had better be deployed
    rollback [VERSION]                  swap back to the release before, or to a version
    status                              which node serves which version
    history                             what was tried, newest first
    info                                everything there is to know
  """

  @switches %{
    "upgrade" => [sha256: :string],
    "hot" => [force: :boolean, config: :boolean, supervisors: :boolean],
    "plan" => [config: :boolean, supervisors: :boolean]
  }

  @doc """
  Runs a command. All but `otp_app` is in hexadecimal, so that nothing that an operator may type, a path with quotes in it
  for one, means anything to the shell or to Elixir. `directory` is where relative paths start.

  Ends with an exit that `bin/NAME rpc` turns into its status: 1 for a failure, 2 for a wrong command.
  """
  @spec main(atom(), String.t(), [String.t()]) :: :ok
  def main(otp_app, directory, arguments) do
    [command | rest] = Enum.map(arguments, &Base.decode16!(&1, case: :mixed))
    directory = Base.decode16!(directory, case: :mixed)

    case OptionParser.parse(rest, strict: Map.get(@switches, command, [])) do
      {options, positional, []} -> run(command, positional, options, {otp_app, directory})
      {_options, _positional, [{invalid, _value} | _]} -> usage("what is #{invalid}?")
    end
  end

  defp run("upgrade", [path], options, {_app, directory}),
    do: path |> Path.expand(directory) |> BeamDeploy.upgrade(options) |> report()

  defp run("hot", [path], options, {app, directory}) do
    options = Keyword.put(options, :otp_app, app)
    path |> Path.expand(directory) |> BeamDeploy.hot_upgrade(options) |> report()
  end

  defp run("plan", [path], options, {app, directory}) do
    options = Keyword.put(options, :otp_app, app)

    with {:ok, plan} <- report(BeamDeploy.plan(Path.expand(path, directory), options)),
         do: plan |> describe_plan() |> IO.puts()
  end

  defp run("rollback", [], [], _context), do: report(BeamDeploy.rollback())
  defp run("rollback", [version], [], _context), do: report(BeamDeploy.rollback(version))

  defp run("status", [], [], _context) do
    case BeamDeploy.status() do
      %{active_node: nil, upgrading: false} -> fail("no peer serves")
      status -> IO.puts(describe_status(status, BeamDeploy.current_vsn()))
    end
  end

  defp run("history", [], [], _context),
    do: Enum.each(BeamDeploy.history(), &IO.puts(describe_entry(&1)))

  defp run("info", [], [], _context),
    do: IO.puts(inspect(BeamDeploy.info(), pretty: true, limit: :infinity))

  defp run("help", [], [], _context), do: IO.puts(@usage)
  defp run(_command, _arguments, _options, _context), do: usage("that is not a command")

  defp report({:error, reason}), do: fail(Error.message(%Error{reason: reason}))
  defp report(done), do: done

  defp fail(sentence) do
    IO.puts("error: " <> sentence)
    exit({:shutdown, 1})
  end

  defp usage(sentence) do
    IO.puts("error: #{sentence}\n\n#{@usage}")
    exit({:shutdown, 2})
  end

  defp describe_status(status, version) do
    "#{version || "nothing"} serves on #{status.active_node || "no node"}" <>
      if(status.upgrading, do: ", an upgrade is in progress", else: "")
  end

  defp describe_plan(plan) do
    lines = [
      "recommended: #{plan.recommendation}"
      | for(reason <- plan.reasons, do: "  " <> Error.not_hot(reason))
    ]

    counts =
      for {label, modules} <- [changed: plan.changed, new: plan.new, removed: plan.removed],
          do: "#{label} modules: #{length(modules)}"

    Enum.join(["#{plan.from.version} -> #{plan.to.version}" | lines ++ counts], "\n")
  end

  @doc "A line of the history."
  @spec describe_entry(map()) :: String.t()
  def describe_entry(entry) do
    outcome =
      case entry.outcome do
        :ok -> "ok"
        {:error, sentence} -> "failed: " <> sentence
      end

    at = entry.at |> DateTime.truncate(:second) |> DateTime.to_iso8601()
    kind = entry.kind |> to_string() |> String.pad_trailing(10)
    "#{at}  #{kind}  #{version(entry.from)} -> #{version(entry.to)}  #{outcome}"
  end

  defp version(nil), do: "?"
  defp version({version, _sha256}), do: version
end
