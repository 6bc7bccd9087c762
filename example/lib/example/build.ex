defmodule Example.Build do
  @moduledoc """
  Builds a release of this very project with another label, as `mix release` in a shell would.
  """

  # What the running release put into its environment would lead another Erlang astray.
  @foreign ~w(RELEASE_ ERL_ ELIXIR_ BEAM_DEPLOY BINDIR ROOTDIR EMU PROGNAME SECRET_KEY_BASE)

  @doc """
  Builds, and gives each line of output to the function. Answers the path of the tarball, or the exit status.
  """
  @spec run(map(), String.t(), (String.t() -> any())) ::
          {:ok, Path.t()} | {:error, {:exit_status, integer()} | :mix_not_found}
  def run(card, version, on_line) do
    path = search_path()

    case :os.find_executable('mix', String.to_charlist(path)) do
      false ->
        {:error, :mix_not_found}

      mix ->
        port =
          Port.open({:spawn_executable, mix}, [
            :binary,
            :exit_status,
            :stderr_to_stdout,
            line: 4096,
            cd: source(),
            args: ["do", "compile", "--force,", "release", "--overwrite"],
            env: environment(card, version, path)
          ])

        with :ok <- follow(port, on_line), do: {:ok, tarball(version)}
    end
  end

  @doc "A version that is neither one of these nor that of a tarball here."
  def next_version(known) do
    numbers =
      for name <- known ++ Path.wildcard(tarball("0.1.*")),
          [number] <- [Regex.run(~r/0\.1\.(\d+)(?:\.tar\.gz)?$/, name, capture: :all_but_first)],
          do: String.to_integer(number)

    "0.1.#{Enum.max(numbers, fn -> 0 end) + 1}"
  end

  defp tarball(version), do: Path.join([source(), "_build", "prod", "example-#{version}.tar.gz"])

  defp source, do: System.get_env("DEMO_SOURCE", File.cwd!())

  defp follow(port, on_line) do
    receive do
      {^port, {:data, {_eol, line}}} ->
        on_line.(line)
        follow(port, on_line)

      {^port, {:exit_status, 0}} ->
        :ok

      {^port, {:exit_status, status}} ->
        {:error, {:exit_status, status}}
    end
  end

  defp environment(card, version, path) do
    cleared =
      for {name, _value} <- System.get_env(),
          String.starts_with?(name, @foreign),
          do: {name, false}

    set = %{
      "MIX_ENV" => "prod",
      "PATH" => path,
      "DEMO_VERSION" => version,
      "DEMO_BUTTON_LABEL" => card.label,
      "DEMO_HUE" => Integer.to_string(card.hue),
      "DEMO_FAULT" => card.fault
    }

    for {name, value} <- cleared ++ Map.to_list(set),
        do: {String.to_charlist(name), value && String.to_charlist(value)}
  end

  # The release's own Erlang comes first in the path of what it starts; it has no compiler.
  defp search_path do
    root = to_string(:code.root_dir())

    System.get_env("PATH", "")
    |> String.split(":")
    |> Enum.reject(&String.starts_with?(&1, root))
    |> Enum.join(":")
  end
end
