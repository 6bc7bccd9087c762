defmodule BeamDeploy.Install do
  @moduledoc false
  # Responsible for: what has to be edited in a project's files, computed from their sources: pure.
  # Not for: finding, showing or writing them (mix beam_deploy.install).
  #
  # A file is edited only where it has the shape that `mix new` and `mix phx.new` give it; text is inserted, and all that was
  # there stays as it was written. Any other is left to a person.

  @type edit :: {:ok, String.t()} | :unchanged | :manual

  @steps "[:assemble, &BeamDeploy.Release.Step.run/1, :tar]"

  @doc "The dependency in mix.exs."
  @spec dependency(String.t(), String.t()) :: edit()
  def dependency(source, requirement) do
    with {:ok, ast} <- parse(source),
         {:ok, body} <- function(ast, :deps, 0),
         {:ok, meta, deps} <- list(body) do
      if Enum.any?(deps, &names?(&1, :beam_deploy)),
        do: :unchanged,
        else: insert_first(source, meta, deps, ~s({:beam_deploy, "#{requirement}"}))
    end
  end

  @doc "The steps of the release in mix.exs."
  @spec release(String.t(), atom()) :: edit()
  def release(source, app) do
    with {:ok, ast} <- parse(source),
         {:ok, body} <- function(ast, :project, 0),
         {:ok, _meta, project} <- list(body) do
      case Enum.find(project, &names?(&1, :releases)) do
        nil -> add_release(source, project, app)
        {_key, releases} -> add_steps(source, releases)
      end
    end
  end

  defp add_release(source, project, app) do
    release = "#{app}: [include_executables_for: [:unix], steps: #{@steps}]"

    case Enum.find(project, &names?(&1, :deps)) do
      {{:__block__, meta, [:deps]}, _deps} ->
        indent = String.duplicate(" ", meta[:column] - 1)
        text = "releases: [\n#{indent}  #{release}\n#{indent}],\n#{indent}"
        checked(replace(source, at(meta), at(meta), text))

      _other ->
        :manual
    end
  end

  defp add_steps(source, releases) do
    with {:ok, _meta, [{_name, release}]} <- list(releases),
         {:ok, meta, options} <- list(release) do
      case Enum.find(options, &names?(&1, :steps)) do
        nil -> insert_first(source, meta, options, "steps: #{@steps}")
        {_key, steps} -> check_steps(steps)
      end
    else
      _several -> :manual
    end
  end

  defp check_steps(steps) do
    with {:ok, _meta, steps} <- list(steps),
         true <- Enum.any?(steps, &match?({:__block__, _meta, [:tar]}, &1)),
         do: :unchanged,
         else: (_other -> :manual)
  end

  @doc "The start of the supervision tree in the application's module."
  @spec application(String.t(), atom()) :: edit()
  def application(source, app) do
    with {:ok, ast} <- parse(source) do
      if calls(ast, [:BeamDeploy]) == [], do: start(source, ast, app), else: :unchanged
    end
  end

  defp start(source, ast, app) do
    with {:ok, body} <- function(ast, :start, 2),
         [{_callee, _meta, [_children, _options] = arguments} = call] <-
           calls(body, [:Supervisor]),
         true <- last(body) == call,
         {:ok, from, inner, to} <- extent(source, call) do
      {line, column} = from
      indent = indent(source, line, column)

      replace(source, from, after_it(to), """
      BeamDeploy.start_link(
      #{indent}  otp_app: #{inspect(app)},
      #{indent}  start: {Supervisor, :start_link, [#{as_list(source, inner, to, arguments)}]}
      #{indent})\
      """)
      |> checked()
    else
      _other -> :manual
    end
  end

  # The text of the arguments, a keyword list that was given without its brackets in brackets.
  defp as_list(source, from, to, [_children, [{{:__block__, meta, [_key]}, _value} | _rest]]) do
    options = at(meta)
    slice(source, from, options) <> "[" <> String.trim_trailing(slice(source, options, to)) <> "]"
  end

  defp as_list(source, from, to, _arguments), do: source |> slice(from, to) |> String.trim()

  @doc "The variable in rel/env.sh.eex, which may not be there yet."
  @spec environment(String.t() | nil) :: edit()
  def environment(nil), do: {:ok, "#!/bin/sh\n\n" <> export()}

  def environment(source) do
    if source =~ ~r/^[^#\n]*\bBEAM_DEPLOY=/m,
      do: :unchanged,
      else: {:ok, String.trim_trailing(source) <> "\n\n" <> export()}
  end

  defp export do
    """
    # The release deploys itself, see BeamDeploy. BEAM_DEPLOY=0 starts it without.
    export BEAM_DEPLOY="${BEAM_DEPLOY:-1}"
    """
  end

  # --- the shape of sources

  # Literals keep where they stand.
  defp parse(source) do
    case Code.string_to_quoted(source,
           columns: true,
           token_metadata: true,
           literal_encoder: &{:ok, {:__block__, &2, [&1]}},
           emit_warnings: false
         ) do
      {:ok, ast} -> {:ok, ast}
      {:error, _reason} -> :manual
    end
  end

  # The body of the only clause of a function.
  defp function(ast, name, arity) do
    {_ast, bodies} =
      Macro.prewalk(ast, [], fn
        {kind, _, [{^name, _, arguments}, [{{:__block__, _, [:do]}, body}]]} = node, found
        when kind in [:def, :defp] and (is_list(arguments) or arguments == nil) ->
          if length(arguments || []) == arity, do: {node, [body | found]}, else: {node, found}

        node, found ->
          {node, found}
      end)

    case bodies do
      [body] -> {:ok, body}
      _none_or_several -> :manual
    end
  end

  defp calls(ast, alias) do
    {_ast, calls} =
      Macro.prewalk(ast, [], fn
        {{:., _, [{:__aliases__, _, ^alias}, :start_link]}, _, _} = call, found ->
          {call, [call | found]}

        node, found ->
          {node, found}
      end)

    calls
  end

  defp last({:__block__, _meta, expressions}), do: List.last(expressions)
  defp last(expression), do: expression

  defp list({:__block__, meta, [list]}) when is_list(list), do: {:ok, meta, list}
  defp list(_other), do: :manual

  # A pair of a keyword list, a tuple of a dependency, which may be one of three.
  defp names?({{:__block__, _, [name]}, _value}, name), do: true
  defp names?({:__block__, _, [{{:__block__, _, [name]}, _value}]}, name), do: true
  defp names?({:{}, _, [{:__block__, _, [name]} | _rest]}, name), do: true
  defp names?(_other, _name), do: false

  # Where a call begins, where its arguments do, and its closing parenthesis.
  defp extent(source, {{:., _, [{:__aliases__, alias, _}, function]}, meta, _arguments}) do
    {line, column} = at(meta)
    open = {line, column + String.length("#{function}")}

    if meta[:closing] && slice(source, open, after_it(open)) == "(",
      do: {:ok, at(alias), after_it(open), at(meta[:closing])},
      else: :manual
  end

  # --- text

  defp insert_first(source, meta, elements, text) do
    place = meta |> at() |> after_it()
    {last_line, last_column} = at(meta[:closing])
    comma = if elements == [], do: "", else: ","

    inserted =
      cond do
        meta[:line] < last_line -> "\n" <> String.duplicate(" ", last_column + 1) <> text <> comma
        elements == [] -> text
        true -> text <> comma <> " "
      end

    checked(replace(source, place, place, inserted))
  end

  # What does not parse would be worse than nothing.
  defp checked(source) do
    with {:ok, _ast} <- parse(source), do: {:ok, source}
  end

  defp at(meta), do: {meta[:line], meta[:column]}
  defp after_it({line, column}), do: {line, column + 1}

  # The white space that a line begins with, for what follows it.
  defp indent(source, line, column) do
    source
    |> slice({line, 1}, {line, column})
    |> String.replace(~r/\S.*/s, "")
  end

  defp replace(source, from, to, text) do
    {before, _rest} = String.split_at(source, offset(source, from))
    {_before, rest} = String.split_at(source, offset(source, to))
    before <> text <> rest
  end

  defp slice(source, from, to) do
    start = offset(source, from)
    String.slice(source, start, offset(source, to) - start)
  end

  defp offset(source, {line, column}) do
    lines = source |> String.split("\n") |> Enum.take(line - 1)
    Enum.reduce(lines, column - 1, &(String.length(&1) + 1 + &2))
  end
end
