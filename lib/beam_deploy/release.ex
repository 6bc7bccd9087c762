defmodule BeamDeploy.Release do
  @moduledoc false
  # Responsible for: describing a release that lies on disk, and whether it is one we can swap to.
  # Not for: putting it there (Archive), keeping it (Store), starting it (Boot).

  alias BeamDeploy.Release.{Platform, RelFile}

  @enforce_keys [:name, :version, :root, :erts_version, :bundled_erts?, :applications]
  defstruct [:name, :version, :root, :erts_version, :bundled_erts?, :applications, :sha256]

  @typedoc "`sha256` is of the tarball; nil for a release that was not staged from one."
  @type t :: %__MODULE__{
          name: String.t(),
          version: String.t(),
          root: Path.t(),
          erts_version: String.t(),
          bundled_erts?: boolean(),
          applications: %{String.t() => String.t()},
          sha256: String.t() | nil
        }

  @type id :: {version :: String.t(), sha256 :: String.t() | nil}

  @type why ::
          :not_a_release
          | :without_beam_deploy
          | {:other_app, [String.t()]}
          | {:missing | :malformed, Path.t()}
          | {:several, [Path.t()]}
          | {:unreadable, Path.t(), File.posix()}

  # Becomes part of directory names and of node start arguments.
  @version ~r/\A[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}\z/

  @doc """
  Reads the release below `root`: the version that `releases/start_erl.data` names, which is the one its start
  script boots. `version:` takes another (RELEASE_VSN).
  """
  @spec read(Path.t(), version: String.t()) :: {:ok, t()} | {:error, {:invalid_release, why()}}
  def read(root, options \\ []) do
    root = Path.expand(root)

    with {:ok, version} <- version(root, options[:version]),
         {:ok, path} <- rel_path(root, version),
         {:ok, text} <- read_file(root, path),
         {:ok, rel} <- parse_rel(text, path) do
      {:ok, from_rel(rel, version, root)}
    end
  end

  @doc "The version that `releases/start_erl.data` names, from its contents: `<ERTS version> <release version>`."
  @spec parse_start_erl(binary()) :: {:ok, String.t()} | {:error, {:invalid_release, why()}}
  def parse_start_erl(text) do
    with [_erts_version, version] <- String.split(text),
         true <- Regex.match?(@version, version) do
      {:ok, version}
    else
      _other -> invalid({:malformed, "releases/start_erl.data"})
    end
  end

  @spec parse_rel(binary(), Path.t()) :: {:ok, RelFile.t()} | {:error, {:invalid_release, why()}}
  def parse_rel(text, path) do
    with {:ok, rel} <- RelFile.parse(text),
         true <- Regex.match?(@version, rel.erts_version) do
      {:ok, rel}
    else
      _other -> invalid({:malformed, path})
    end
  end

  @doc "Which of the `.rel` files of a version is the release's: tools leave `start_clean.rel` beside it."
  @spec choose_rel([Path.t()], String.t()) ::
          {:ok, Path.t()} | {:error, {:invalid_release, why()}}
  def choose_rel(paths, version) do
    case Enum.reject(paths, &(Path.basename(&1) in ["start_clean.rel", "no_dot_erlang.rel"])) do
      [path] -> {:ok, path}
      [] -> invalid({:missing, "releases/#{version}/*.rel"})
      several -> invalid({:several, Enum.sort(several)})
    end
  end

  @doc "What tells a release from any other: versions are often used twice."
  @spec id(t()) :: id()
  def id(%__MODULE__{version: version, sha256: sha256}), do: {version, sha256}

  @doc "Whether this is a release of `otp_app` that BeamDeploy can run in."
  @spec check_app(t(), atom()) :: :ok | {:error, {:invalid_release, why()}}
  def check_app(%__MODULE__{applications: applications}, otp_app) do
    cond do
      not is_map_key(applications, Atom.to_string(otp_app)) ->
        invalid({:other_app, applications |> Map.keys() |> Enum.sort()})

      not is_map_key(applications, "beam_deploy") ->
        invalid(:without_beam_deploy)

      true ->
        :ok
    end
  end

  @doc "Whether all that a boot needs is there; what lies in the store may have been damaged since it was staged."
  @spec check_whole(t()) :: :ok | {:error, {:damaged_release, String.t()}}
  def check_whole(%__MODULE__{} = release) do
    if Enum.all?(needed(release), &File.regular?(Path.join(release.root, &1))),
      do: :ok,
      else: {:error, {:damaged_release, release.version}}
  end

  defp needed(release) do
    files =
      for name <- ~w(start.boot vm.args sys.config env.sh elixir),
          do: "releases/#{release.version}/#{name}"

    files ++ runtime(release)
  end

  # Without a runtime system of its own a release lacks the applications of OTP as well.
  defp runtime(%{bundled_erts?: false}), do: []

  defp runtime(release) do
    applications =
      for {app, version} <- release.applications, do: "lib/#{app}-#{version}/ebin/#{app}.app"

    ["erts-#{release.erts_version}/bin/beam.smp" | applications]
  end

  @doc "Whether the release can run on this machine, told before anything is booted."
  @spec check_compatible(t(), Platform.t()) :: :ok | {:error, {:incompatible_release, map()}}
  def check_compatible(%__MODULE__{} = release, facts \\ Platform.running()),
    do: Platform.check(release, facts)

  defp version(_root, version) when is_binary(version) do
    if Regex.match?(@version, version), do: {:ok, version}, else: invalid({:malformed, "version"})
  end

  defp version(root, nil) do
    case File.read(Path.join(root, "releases/start_erl.data")) do
      {:ok, text} -> parse_start_erl(text)
      {:error, posix} when posix in [:enoent, :enotdir] -> invalid(:not_a_release)
      {:error, posix} -> invalid({:unreadable, "releases/start_erl.data", posix})
    end
  end

  defp rel_path(root, version) do
    directory = Path.join("releases", version)

    case File.ls(Path.join(root, directory)) do
      {:ok, names} ->
        names
        |> Enum.filter(&(Path.extname(&1) == ".rel"))
        |> Enum.map(&Path.join(directory, &1))
        |> choose_rel(version)

      {:error, posix} when posix in [:enoent, :enotdir] ->
        invalid({:missing, directory})

      {:error, posix} ->
        invalid({:unreadable, directory, posix})
    end
  end

  defp read_file(root, path) do
    case File.read(Path.join(root, path)) do
      {:ok, text} -> {:ok, text}
      {:error, posix} -> invalid({:unreadable, path, posix})
    end
  end

  defp from_rel(rel, version, root) do
    %__MODULE__{
      name: rel.name,
      version: version,
      root: root,
      erts_version: rel.erts_version,
      bundled_erts?: File.regular?(Path.join(root, "erts-#{rel.erts_version}/bin/beam.smp")),
      applications: rel.applications
    }
  end

  defp invalid(why), do: {:error, {:invalid_release, why}}
end
