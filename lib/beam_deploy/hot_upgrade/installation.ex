defmodule BeamDeploy.HotUpgrade.Installation do
  @moduledoc false
  # Responsible for: the new release's files on disk, and what a restart of this release boots.
  # Not for: what is loaded.
  #
  # Nothing that exists is changed in place. With `release_root:` somebody has staged the whole release already and
  # decides himself what is booted next. Else the release that this node was booted from is brought up to date, as OTP's
  # release handler does it: the new version's directories are put beside the old ones, where nothing refers to them
  # yet, and then one rename of `releases/start_erl.data` decides what `bin/my_app start` boots. Killed at any instant,
  # the next start finds the old version or the new one, whole.
  #
  # A directory whose name is taken by other contents, because somebody built two releases of one version, gets the
  # start of the tarball's digest added to its name, and the boot files that name it are rewritten before they are used.

  alias BeamDeploy.HotUpgrade.{Aside, Contents, Running, SysConfig}
  alias BeamDeploy.Native
  alias BeamDeploy.Release.Archive

  require Logger

  @enforce_keys [:root, :directory, :libraries]
  defstruct [:root, :directory, :libraries, :consolidated, :next, :aside, created: []]

  @typedoc """
  `directory` is the name under `releases/`, `libraries` are the applications' directories by name. `next` is the file
  that has to take the place of `start_erl.data` to remember the upgrade, nil when that is not ours to do. `created` is
  what has to go when the upgrade fails, `aside` a directory that is gone when no node needs it any more.
  """
  @type t :: %__MODULE__{
          root: Path.t(),
          directory: String.t(),
          libraries: %{String.t() => Path.t()},
          consolidated: Path.t() | nil,
          next: Path.t() | nil,
          aside: Path.t() | nil,
          created: [Path.t()]
        }

  @start_erl "releases/start_erl.data"

  @spec prepare(Path.t(), Contents.t(), Path.t() | nil) :: {:ok, t()} | {:error, term()}
  def prepare(tarball, contents, release_root)

  def prepare(_tarball, contents, root) when root != nil do
    with :ok <- check_staged(root, contents) do
      {:ok,
       %__MODULE__{root: root, directory: contents.version, libraries: libraries(root, contents)}}
    end
  end

  def prepare(tarball, contents, nil) do
    case Running.release_root() do
      nil -> unpack_aside(tarball, contents)
      root -> install(tarball, contents, root)
    end
  end

  @doc "The path of a file of `releases/VERSION`."
  @spec release_file(t(), Path.t()) :: Path.t()
  def release_file(%__MODULE__{} = installation, name),
    do: Path.join([installation.root, "releases", installation.directory, name])

  @doc "Where a module of the tarball lies now."
  @spec locate(t(), map()) :: Path.t()
  def locate(installation, %{path: path, app: app}) do
    case Path.split(path) do
      ["lib", _library | rest] -> Path.join([installation.libraries[app] | rest])
      ["releases", _version | rest] -> release_file(installation, Path.join(rest))
    end
  end

  @doc "From here on the new version is what a restart boots. Only a rename: the processes are waiting."
  @spec commit(t()) :: :ok | {:error, {:not_recorded, File.posix()}}
  def commit(%__MODULE__{next: nil}), do: :ok

  def commit(%__MODULE__{next: next} = installation) do
    with {:error, posix} <- File.rename(next, Path.join(installation.root, @start_erl)),
         do: {:error, {:not_recorded, posix}}
  end

  @doc "Brings the rename to the disk."
  @spec sync(t()) :: :ok | {:error, File.posix()}
  def sync(%__MODULE__{next: nil}), do: :ok
  def sync(%__MODULE__{root: root}), do: Native.sync_file_system(root)

  @doc "The node is told where its release is now, as the start script would."
  @spec announce(t()) :: :ok
  def announce(%__MODULE__{} = installation) do
    # A node that was not booted from a release does not become one. Asked before the version changes: the old root need
    # not have the new one.
    if Running.release_root() do
      System.put_env("RELEASE_VSN", installation.directory)
      System.put_env("RELEASE_ROOT", installation.root)
    else
      :ok
    end
  end

  @doc "Takes away what `prepare/3` put there."
  @spec discard(t()) :: :ok
  def discard(%__MODULE__{} = installation) do
    Enum.each(installation.created, &File.rm_rf!/1)
    if installation.aside, do: Aside.discard(installation.aside), else: :ok
  end

  # --- staged by somebody else

  defp check_staged(root, contents) do
    if File.dir?(Path.join([root, "releases", contents.version])),
      do: :ok,
      else: {:error, {:invalid_release, {:missing, "releases/#{contents.version}"}}}
  end

  # A release without its own runtime system has none of OTP's applications.
  defp libraries(root, contents) do
    for {app, version} <- contents.applications,
        library = Path.join([root, "lib", "#{app}-#{version}"]),
        File.dir?(library),
        into: %{},
        do: {app, library}
  end

  defp with_consolidated(installation) do
    path = release_file(installation, "consolidated")
    if File.dir?(path), do: %{installation | consolidated: path}, else: installation
  end

  # --- outside of a release, as in development

  defp unpack_aside(tarball, contents) do
    with {:ok, aside} <- create_aside(contents.version),
         root = Path.join(aside, "release"),
         {:ok, _sha256} <- unpack(tarball, root, contents, aside) do
      Logger.warning(
        "beam_deploy: this node was not booted from a release; the hot upgrade will not outlive it"
      )

      libraries = Map.take(libraries(root, contents), changing(contents))

      {:ok,
       %__MODULE__{root: root, directory: contents.version, libraries: libraries, aside: aside}}
    end
  end

  defp create_aside(version) do
    with {:error, posix} <- Aside.create(version), do: {:error, {:extract_failed, posix}}
  end

  defp unpack(tarball, root, contents, aside) do
    with {:error, reason} <- Archive.unpack(tarball, root, sha256: contents.sha256) do
      :ok = Aside.discard(aside)
      {:error, reason}
    end
  end

  # Development runs on a platform of its own, which stays.
  defp changing(contents) do
    for {_name, %{app: app, bytes: _}} <- contents.modules, app != nil, uniq: true, do: app
  end

  # --- into the release that runs here

  defp install(tarball, contents, root) do
    temporary = Path.join(root, "releases/.hot-#{unique()}")
    :ok = sweep(root)

    # The tarball that was planned with, whatever the file holds by now.
    options = [link_from: root, sha256: contents.sha256]

    with {:ok, _sha256} <- Archive.unpack(tarball, temporary, options) do
      case place(temporary, contents, root) do
        {:ok, installation} ->
          File.rm_rf!(temporary)
          {:ok, installation}

        {:error, reason, created} ->
          Enum.each([temporary | created], &File.rm_rf!/1)
          {:error, reason}
      end
    end
  end

  # What an attempt left that was killed. Nothing refers to it.
  defp sweep(root),
    do:
      root
      |> Path.join("releases/.hot-*")
      |> Path.wildcard(match_dot: true)
      |> Enum.each(&File.rm_rf!/1)

  defp place(staged, contents, root) do
    suffix = String.slice(contents.sha256, 0, 8)

    names =
      for {app, version} <- contents.applications,
          library = "#{app}-#{version}",
          File.dir?(Path.join([staged, "lib", library])),
          into: %{} do
        {app,
         {library,
          free_name(Path.join(root, "lib"), library, Path.join([staged, "lib", library]), suffix)}}
      end

    directory = directory(staged, contents.version, root, names, suffix)
    :ok = rewrite(staged, contents.version, directory, names)

    moves =
      runtime_system(staged, contents.erts_version, root) ++
        for(
          {_app, {library, name}} <- names,
          do: {Path.join([staged, "lib", library]), Path.join([root, "lib", name])}
        ) ++
        [
          {Path.join([staged, "releases", contents.version]),
           Path.join([root, "releases", directory])}
        ]

    next = Path.join(root, "releases/.hot-start_erl.data")

    with {:ok, created} <- move(moves, []),
         created = [next | created],
         :ok <- prepare_next(next, contents.erts_version, directory, root, created) do
      {:ok,
       with_consolidated(%__MODULE__{
         root: root,
         directory: directory,
         libraries:
           Map.new(names, fn {app, {_library, name}} -> {app, Path.join([root, "lib", name])} end),
         next: next,
         created: created
       })}
    end
  end

  # Another one than that of this release, by force, is what the next start needs.
  defp runtime_system(staged, version, root) do
    name = "erts-#{version}"
    from = Path.join(staged, name)
    if File.dir?(from), do: [{from, Path.join(root, name)}], else: []
  end

  defp move([], created), do: {:ok, created}

  defp move([{from, to} | rest], created) do
    case File.exists?(to) or File.rename(from, to) do
      # The same contents are there already.
      true -> move(rest, created)
      :ok -> move(rest, [to | created])
      {:error, posix} -> {:error, {:extract_failed, posix}, created}
    end
  end

  # On the disk before the upgrade begins, with all that it refers to.
  defp prepare_next(next, erts_version, directory, root, created) do
    with {:ok, stat} <- File.stat(Path.join(root, @start_erl)),
         :ok <- File.write(next, "#{erts_version} #{directory}"),
         :ok <- File.chmod(next, stat.mode),
         :ok <- Native.sync_file_system(root) do
      :ok
    else
      {:error, posix} -> {:error, {:extract_failed, posix}, created}
    end
  end

  # A version that was installed before and is not running can be used again if it is the same.
  defp free_name(parent, name, staged, suffix) do
    Enum.find([name, "#{name}+#{suffix}"], "#{name}+#{suffix}.#{unique()}", fn candidate ->
      path = Path.join(parent, candidate)
      not File.exists?(path) or same_tree?(path, staged)
    end)
  end

  # Its boot files name the applications' directories: another name of one of them makes another release of it.
  defp directory(staged, version, root, names, suffix) do
    renamed? = Enum.any?(names, fn {_app, {library, name}} -> library != name end)
    parent = Path.join(root, "releases")
    path = Path.join([staged, "releases", version])

    cond do
      not renamed? ->
        free_name(parent, version, path, suffix)

      not File.exists?(Path.join(parent, version)) ->
        version

      true ->
        Enum.find(
          ["#{version}+#{suffix}"],
          "#{version}+#{suffix}.#{unique()}",
          &(not File.exists?(Path.join(parent, &1)))
        )
    end
  end

  defp rewrite(staged, version, directory, names) do
    renamed =
      for {_app, {library, name}} <- names, library != name, into: %{}, do: {library, name}

    if renamed != %{} or directory != version do
      path = Path.join([staged, "releases", version])

      Enum.each(
        Path.wildcard(Path.join(path, "*.boot")),
        &rewrite_boot(&1, renamed, version, directory)
      )

      replace(Path.join(path, "sys.config"), &SysConfig.rename(&1, version, directory))
    else
      :ok
    end
  end

  defp rewrite_boot(path, renamed, version, directory) do
    replace(path, fn boot ->
      {:script, id, commands} = :erlang.binary_to_term(boot)
      commands = Enum.map(commands, &rewrite_command(&1, renamed, version, directory))
      :erlang.term_to_binary({:script, id, commands})
    end)
  end

  defp rewrite_command({:path, path}, renamed, version, directory) do
    {:path,
     Enum.map(
       path,
       &(&1
         |> List.to_string()
         |> rewrite_entry(renamed, version, directory)
         |> String.to_charlist())
     )}
  end

  defp rewrite_command(command, _renamed, _version, _directory), do: command

  defp rewrite_entry(entry, renamed, version, directory) do
    case entry |> Path.split() |> Enum.reverse() do
      ["ebin", library | above] when is_map_key(renamed, library) ->
        join(["ebin", renamed[library] | above])

      ["consolidated", ^version, "releases" | above] ->
        join(["consolidated", directory, "releases" | above])

      _other ->
        entry
    end
  end

  defp join(reversed), do: reversed |> Enum.reverse() |> Path.join()

  # Its links may be shared with the running release: a new file takes its place.
  defp replace(path, function) do
    case File.read(path) do
      {:ok, contents} ->
        stat = File.stat!(path)
        File.write!(path <> ".new", function.(contents))
        File.chmod!(path <> ".new", stat.mode)
        File.rename!(path <> ".new", path)

      {:error, :enoent} ->
        :ok
    end
  end

  defp same_tree?(one, other) do
    case {File.ls(one), File.ls(other)} do
      {{:ok, names}, {:ok, others}} ->
        Enum.sort(names) == Enum.sort(others) and
          Enum.all?(names, &same_tree?(Path.join(one, &1), Path.join(other, &1)))

      {{:error, :enotdir}, {:error, :enotdir}} ->
        same_file?(one, other)

      _different ->
        false
    end
  end

  defp same_file?(one, other) do
    one_stat = File.stat!(one)
    other_stat = File.stat!(other)

    {one_stat.inode, one_stat.major_device} == {other_stat.inode, other_stat.major_device} or
      (one_stat.size == other_stat.size and File.read!(one) == File.read!(other))
  end

  defp unique, do: Base.encode16(:crypto.strong_rand_bytes(4), case: :lower)
end
