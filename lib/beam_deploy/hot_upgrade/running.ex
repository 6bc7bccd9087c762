defmodule BeamDeploy.HotUpgrade.Running do
  @moduledoc false
  # Responsible for: the contents of what runs in this node, as a plan compares with them.
  # Not for: processes.

  alias BeamDeploy.HotUpgrade.{Beam, Contents, SysConfig}
  alias BeamDeploy.Release

  @doc "What is loaded counts; what is not loaded yet counts as its file, since that is what would be loaded."
  @spec contents() :: Contents.t()
  def contents do
    applications = applications()

    %Contents{
      name: System.get_env("RELEASE_NAME"),
      version: System.get_env("RELEASE_VSN"),
      erts_version: List.to_string(:erlang.system_info(:version)),
      applications: applications,
      bundled_erts?: bundled_erts?(),
      modules: modules(applications),
      files: files(applications),
      config: config()
    }
  end

  @doc "Root of the release that runs here, or nil outside of one."
  @spec release_root() :: Path.t() | nil
  def release_root do
    with root when root != nil <- System.get_env("RELEASE_ROOT"),
         version when version != nil <- System.get_env("RELEASE_VSN"),
         true <- File.dir?(Path.join([root, "releases", version])) do
      root
    else
      _none -> nil
    end
  end

  @doc """
  Contents of the file that a loaded module came from, if it is there and still the same.

  In the file the code stands as it was loaded, which is what undoing an upgrade needs.
  """
  @spec object_code(module()) :: {:ok, charlist(), binary()} | {:error, :not_found | :differs}
  def object_code(module) do
    with path when is_list(path) <- :code.which(module),
         {:ok, beam} <- File.read(path) do
      if same?(module, beam), do: {:ok, path, beam}, else: {:error, :differs}
    else
      _none -> {:error, :not_found}
    end
  end

  @doc "The MD5 of a module without the chunk that stripping removes, when its file tells it."
  @spec bare_md5(String.t()) :: binary() | nil
  def bare_md5(name) do
    with {:ok, module} <- existing_atom(name),
         {:ok, _path, beam} <- object_code(module),
         {:ok, {_whole, bare}} <- Beam.md5s(beam) do
      bare
    else
      _none -> nil
    end
  end

  @doc "Names of the fields of a loaded struct."
  @spec struct_fields(String.t()) :: [String.t()] | nil
  def struct_fields(name) do
    with {:ok, module} <- existing_atom(name),
         true <- function_exported?(module, :__struct__, 0) do
      module.__struct__()
      |> Map.delete(:__struct__)
      |> Map.keys()
      |> Enum.map(&to_string/1)
      |> Enum.sort()
    else
      _none -> nil
    end
  end

  @spec existing_atom(String.t()) :: {:ok, atom()} | :error
  def existing_atom(name) do
    {:ok, String.to_existing_atom(name)}
  rescue
    ArgumentError -> :error
  end

  defp same?(module, beam) do
    case Beam.md5s(beam) do
      {:ok, {whole, bare}} -> module.module_info(:md5) in [whole, bare]
      {:error, _reason} -> false
    end
  end

  # In a release its `.rel` says what belongs to it: `iex` and others are there without being loaded.
  defp applications do
    with root when root != nil <- release_root(),
         {:ok, release} <- Release.read(root, version: System.fetch_env!("RELEASE_VSN")) do
      release.applications
    else
      _outside ->
        for {app, _description, vsn} <- Application.loaded_applications(),
            into: %{},
            do: {Atom.to_string(app), List.to_string(vsn)}
    end
  end

  defp modules(applications) do
    loaded =
      for {module, path} <- :code.all_loaded(),
          path != :preloaded,
          {:ok, md5} <- [md5(module)],
          into: %{} do
        {Atom.to_string(module), %{md5: md5, app: nil}}
      end

    for {app, _vsn} <- applications,
        directory = library(app, "ebin"),
        directory != nil,
        path <- Path.wildcard(Path.join(directory, "*.beam")),
        reduce: loaded do
      modules -> add(modules, app, Path.basename(path, ".beam"), path)
    end
  end

  # One that was unloaded since it was listed is not loaded.
  defp md5(module) do
    {:ok, module.module_info(:md5)}
  rescue
    UndefinedFunctionError -> :unloaded
  end

  defp add(modules, app, name, path) do
    case modules do
      %{^name => known} -> %{modules | name => %{known | app: app}}
      _not_loaded -> add_file(modules, name, app, consolidated(name) || path)
    end
  end

  defp add_file(modules, name, app, path) do
    with {:ok, beam} <- File.read(path),
         {:ok, {whole, bare}} <- Beam.md5s(beam) do
      Map.put(modules, name, %{md5: whole, bare_md5: bare, app: app})
    else
      _unreadable -> modules
    end
  end

  # The code path leads to the one that would be loaded.
  defp consolidated(name) do
    with root when root != nil <- release_root(),
         path =
           Path.join([
             root,
             "releases",
             System.fetch_env!("RELEASE_VSN"),
             "consolidated",
             name <> ".beam"
           ]),
         true <- File.exists?(path) do
      path
    else
      _none -> nil
    end
  end

  defp library(app, sub) do
    with {:ok, app} <- existing_atom(app),
         directory when is_list(directory) <- :code.lib_dir(app) do
      Path.join(List.to_string(directory), sub)
    else
      _none -> nil
    end
  end

  defp files(applications) do
    for {app, _vsn} <- applications,
        directory = library(app, "priv"),
        directory != nil,
        path <- regular_files(directory),
        {:ok, contents} <- [File.read(path)],
        into: %{} do
      {Path.join([app, "priv", Path.relative_to(path, directory)]), :erlang.md5(contents)}
    end
  end

  defp regular_files(path) do
    case File.ls(path) do
      {:ok, names} -> Enum.flat_map(names, &regular_files(Path.join(path, &1)))
      {:error, :enotdir} -> [path]
      {:error, _posix} -> []
    end
  end

  defp config do
    with root when root != nil <- release_root(),
         version = System.fetch_env!("RELEASE_VSN"),
         directory = Path.join([root, "releases", version]) do
      for name <- Contents.config_names(),
          {:ok, text} <- [File.read(Path.join(directory, name))],
          into: %{} do
        {name, SysConfig.comparable(name, text, version)}
      end
    else
      nil -> %{}
    end
  end

  defp bundled_erts? do
    root = List.to_string(:code.root_dir())
    System.get_env("RELEASE_ROOT") in [root, root <> "/"]
  end
end
