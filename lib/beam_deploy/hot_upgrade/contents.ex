defmodule BeamDeploy.HotUpgrade.Contents do
  @moduledoc false
  # Responsible for: what a release consists of, in the same terms whether it runs here or lies in a tarball.
  # Not for: comparing two of them (Plan).

  alias BeamDeploy.HotUpgrade.{Scan, SysConfig}
  alias BeamDeploy.Release

  @enforce_keys [:version, :erts_version, :applications, :modules]
  defstruct [
    :name,
    :version,
    :erts_version,
    :sha256,
    :applications,
    :modules,
    bundled_erts?: false,
    protocols: MapSet.new(),
    files: %{},
    config: %{}
  ]

  @typedoc """
  `modules` maps names to what is known of them: always `md5` and `app` (nil for a consolidated protocol). `protocols`
  are the consolidated ones. `files` are those under `priv`, named without the application's version. `config` are
  texts that `start_erl.data` leads to, with the release's version taken out of their paths.
  """
  @type t :: %__MODULE__{
          name: String.t() | nil,
          version: String.t() | nil,
          erts_version: String.t(),
          sha256: String.t() | nil,
          applications: %{String.t() => String.t()},
          modules: %{String.t() => map()},
          bundled_erts?: boolean(),
          protocols: MapSet.t(String.t()),
          files: %{String.t() => binary()},
          config: %{String.t() => binary()}
        }

  @doc "Names of the texts that configure a release, in `releases/VERSION`."
  @spec config_names() :: [String.t()]
  def config_names, do: ["sys.config", "runtime.exs", "vm.args", "env.sh"]

  @spec from_scan(Scan.t()) :: {:ok, t()} | {:error, {:invalid_release, Release.why()}}
  def from_scan(scan) do
    with {:ok, version} <- version(scan.texts),
         directory = Path.join("releases", version),
         {:ok, rel_path} <- Release.choose_rel(rel_paths(scan.texts, directory), version),
         {:ok, rel} <- Release.parse_rel(Map.fetch!(scan.texts, rel_path), rel_path) do
      {:ok,
       %__MODULE__{
         name: rel.name,
         version: version,
         erts_version: rel.erts_version,
         sha256: Base.encode16(scan.sha256, case: :lower),
         applications: rel.applications,
         bundled_erts?: "erts-#{rel.erts_version}" in scan.runtimes,
         modules: modules(scan.modules, rel.applications, directory),
         protocols: protocols(scan.modules, directory),
         files: files(scan.files, rel.applications),
         config: config(scan.texts, directory, version)
       }}
    end
  end

  @doc "Names to MD5s, as a scan compares with."
  @spec md5s(t()) :: %{String.t() => binary()}
  def md5s(%__MODULE__{modules: modules}),
    do: Map.new(modules, fn {name, %{md5: md5}} -> {name, md5} end)

  @doc "Whether both consist of the same code."
  @spec same_module?(map(), map()) :: boolean()
  def same_module?(%{md5: md5}, %{md5: md5}), do: true
  # Stripped on one side only: compared without the chunk that stripping removes.
  def same_module?(%{bare_md5: bare}, %{bare_md5: bare}) when bare != nil, do: true
  def same_module?(_one, _other), do: false

  defp version(texts) do
    case texts do
      %{"releases/start_erl.data" => text} -> Release.parse_start_erl(text)
      _none -> {:error, {:invalid_release, :not_a_release}}
    end
  end

  defp rel_paths(texts, directory) do
    for path <- Map.keys(texts),
        Path.dirname(path) == directory,
        Path.extname(path) == ".rel",
        do: path
  end

  # A tarball may hold applications and releases that its start script never boots.
  defp modules(found, applications, directory) do
    consolidated = Path.join(directory, "consolidated")
    libraries = libraries(applications)

    {protocols, others} = Enum.split_with(found, &(Path.dirname(&1.path) == consolidated))

    others =
      for file <- others, app = libraries[library(file.path)], into: %{} do
        {file.name, Map.put(file, :app, app)}
      end

    # The consolidated one is first on the code path.
    Enum.reduce(protocols, others, fn file, modules ->
      app = if is_map_key(modules, file.name), do: modules[file.name].app
      Map.put(modules, file.name, Map.put(file, :app, app))
    end)
  end

  defp protocols(found, directory) do
    consolidated = Path.join(directory, "consolidated")
    for file <- found, Path.dirname(file.path) == consolidated, into: MapSet.new(), do: file.name
  end

  defp files(found, applications) do
    libraries = libraries(applications)

    for {path, md5} <- found, app = libraries[library(path)], into: %{} do
      ["lib", _library | rest] = Path.split(path)
      {Path.join([app | rest]), md5}
    end
  end

  defp config(texts, directory, version) do
    for name <- config_names(), text = texts[Path.join(directory, name)], into: %{} do
      {name, SysConfig.comparable(name, text, version)}
    end
  end

  defp libraries(applications),
    do: Map.new(applications, fn {app, version} -> {"#{app}-#{version}", app} end)

  defp library(path) do
    case Path.split(path) do
      ["lib", library | _rest] -> library
      _other -> nil
    end
  end
end
