defmodule BeamDeploy.Release.Store do
  @moduledoc false
  # Responsible for: which releases are on disk and which of them is current, through any crash.
  # Not for: what runs.
  #
  # The state file is the commit record: a release counts from the moment the file lists it, and before that is
  # written everything that was staged is brought to the disk. What the file does not list when the store is opened
  # was never finished, and is removed. So staging itself has to wait for no disk.
  #
  #     lock        held while a parent uses the store
  #     state       see BeamDeploy.Release.Store.State
  #     releases/   one directory for each staged release, whole
  #     staging/    what is being extracted
  #     trash/      what is being deleted: renaming is one step, deleting thousands of files is not

  import Bitwise, only: [band: 2]
  require Logger

  alias BeamDeploy.{Native, Release}
  alias BeamDeploy.Release.Store.State

  @enforce_keys [:dir, :lock, :base, :base_id]
  defstruct [:dir, :lock, :base, :base_id]

  @type t :: %__MODULE__{
          dir: Path.t(),
          lock: reference(),
          base: Release.t(),
          base_id: State.base_id()
        }

  @type entry :: %{
          optional(:at) => DateTime.t(),
          kind: :blue_green | :hot | :rollback | :boot,
          from: Release.id() | nil,
          to: Release.id() | nil,
          outcome: :ok | {:error, term()}
        }

  @type reason ::
          {:insecure_store, Path.t(), why :: term()}
          | {:store_in_use, Path.t()}
          | {:corrupt_store, Path.t(), why :: term()}
          | {:store_failed, Path.t(), File.posix()}

  @manifest "beam_deploy.release"

  @doc """
  Where the store of this node is by default: the `:dir` option, `BEAM_DEPLOY_DIR`, the release's own directory, else
  the temporary directory, which a reboot empties (`:volatile`). Below it each node has its own.
  """
  @spec default_dir(%{optional(String.t()) => String.t()}, atom(), keyword()) ::
          {:ok | :volatile, Path.t()}
  def default_dir(env, otp_app, options \\ []) do
    given = options[:dir] || present(env["BEAM_DEPLOY_DIR"])
    name = options |> Keyword.get(:node, node()) |> short_name(otp_app)

    {kind, dir} =
      cond do
        given -> {:ok, given}
        dir = beside_release(present(env["RELEASE_ROOT"])) -> {:ok, dir}
        true -> {:volatile, temporary()}
      end

    {kind, dir |> Path.expand() |> Path.join(name)}
  end

  @doc "Opens the directory for this OS process alone. `base` is the release the parent was booted from."
  @spec open(Path.t(), Release.t(), keyword()) :: {:ok, t()} | {:error, reason()}
  def open(dir, %Release{} = base, _options \\ []) do
    dir = Path.expand(dir)

    with :ok <- make_private(dir),
         :ok <- check_above(dir, base),
         {:ok, lock} <- take_lock(dir) do
      store = %__MODULE__{dir: dir, lock: lock, base: base, base_id: base_id(base)}

      case recover(store) do
        :ok ->
          {:ok, store}

        {:error, reason} ->
          :ok = close(store)
          {:error, reason}
      end
    end
  end

  @doc "Lets another parent open the directory. The end of the process does the same."
  @spec close(t()) :: :ok
  def close(%__MODULE__{lock: lock}), do: Native.unlock_file(lock)

  @spec base(t()) :: Release.t()
  def base(%__MODULE__{base: base}), do: base

  @doc "The release that is to serve."
  @spec current(t()) :: Release.t()
  def current(store), do: store |> state!() |> Map.fetch!(:current) |> locate!(store)

  @doc "The one that served before it."
  @spec previous(t()) :: Release.t() | nil
  def previous(store) do
    case state!(store).previous do
      nil -> nil
      key -> locate!(key, store)
    end
  end

  @doc "What to serve when the parent starts: the current release, and in their order what may stand in for it."
  @spec candidates(t()) :: [Release.t(), ...]
  def candidates(store) do
    [current(store), previous(store), store.base]
    |> Enum.reject(&is_nil/1)
    |> Enum.uniq_by(& &1.root)
  end

  @doc """
  What to roll back to: with nil the one that served before, else the newest of a version. Never what `running` names:
  several releases may have one version.
  """
  @spec target(t(), String.t() | nil, Release.t()) ::
          {:ok, Release.t()}
          | {:error,
             :no_previous_release
             | {:unknown_release, String.t()}
             | {:already_current, String.t()}
             | {:damaged_release, String.t()}}
  def target(store, version, running) do
    state = state!(store)

    keys =
      if version == nil,
        do: List.wrap(state.previous),
        else: Enum.filter(state.releases ++ [:base], &(version(&1, store) == version))

    case Enum.split_with(keys, &(root(store, &1) == running.root)) do
      {_running, [key | _older]} -> locate(key, store)
      {[_running], []} -> {:error, {:already_current, running.version}}
      {[], []} when version == nil -> {:error, :no_previous_release}
      {[], []} -> {:error, {:unknown_release, version}}
    end
  end

  @doc "What the store occupies on disk, in bytes; what is linked counts once."
  @spec size(t()) :: non_neg_integer()
  def size(store) do
    {bytes, _seen} = size_of(String.to_charlist(store.dir), {0, MapSet.new()})
    bytes
  end

  defp size_of(path, {bytes, seen}) do
    case :file.read_link_info(path, [:raw]) do
      {:ok, info} ->
        %File.Stat{type: type, size: size, inode: inode} = File.Stat.from_record(info)

        cond do
          type == :directory -> size_of_all(path, {bytes + size, seen})
          MapSet.member?(seen, inode) -> {bytes, seen}
          true -> {bytes + size, MapSet.put(seen, inode)}
        end

      # Gone since its directory was read.
      {:error, _posix} ->
        {bytes, seen}
    end
  end

  defp size_of_all(dir, sum) do
    case :file.list_dir_all(dir) do
      {:ok, names} -> Enum.reduce(names, sum, &size_of(:filename.join(dir, &1), &2))
      {:error, _posix} -> sum
    end
  end

  @doc "All that can be swapped to, newest first; the base last. Without those that are listed and not there."
  @spec releases(t()) :: [Release.t()]
  def releases(store) do
    for key <- state!(store).releases ++ [:base],
        {:ok, release} <- [locate(key, store)],
        do: release
  end

  @doc "Their roots alone, which takes a look at none of them."
  @spec roots(t()) :: [Path.t()]
  def roots(store), do: Enum.map(state!(store).releases ++ [:base], &root(store, &1))

  @spec history(t()) :: [entry()]
  def history(store), do: Enum.map(state!(store).history, &State.to_entry/1)

  @doc "By version or by identity. Of several with one version, the newest."
  @spec fetch(t(), String.t() | Release.id()) ::
          {:ok, Release.t()} | {:error, {:unknown_release, String.t() | Release.id()}}
  def fetch(store, wanted) do
    case Enum.find(releases(store), &(wanted in [&1.version, Release.id(&1)])) do
      nil -> {:error, {:unknown_release, wanted}}
      release -> {:ok, release}
    end
  end

  @doc "Makes `release` current, durably. On return a crash at any instant leaves it current."
  @spec promote(t(), Release.t(), entry()) :: :ok | {:error, reason()}
  def promote(store, %Release{} = release, entry) do
    update(store, fn state ->
      key = key(release, store)

      with :ok <- sync_unless_listed(store, state, key),
           do: {:ok, state |> State.promote(key, entry[:from]) |> State.record(entry)}
    end)
  end

  @doc "Adds to the history: what was tried and did not come to be current."
  @spec record(t(), entry()) :: :ok | {:error, reason()}
  def record(store, entry), do: update(store, &{:ok, State.record(&1, entry)})

  @doc """
  Removes all but the `keep` newest staged releases. Never the current one, the previous one, the base, or one whose
  root is among `live`. Answers the identities of what went.
  """
  @spec prune(t(), non_neg_integer(), [Path.t()]) :: {:ok, [Release.id()]} | {:error, reason()}
  def prune(store, keep, live \\ []) do
    live = MapSet.new(live, &Path.expand/1)
    spared? = fn key -> MapSet.member?(live, root(store, key)) end

    with {:ok, dropped} <- drop_from_state(store, keep, spared?) do
      Enum.each(dropped, &(:ok = remove(store, root(store, &1))))
      {:ok, Enum.map(dropped, fn {version, sha256, _name} -> {version, sha256} end)}
    end
  end

  @doc "Removes a staged release that never became current. Any other stays."
  @spec discard(t(), Release.t()) :: :ok
  def discard(store, %Release{root: root}) do
    staged? = Path.dirname(root) == Path.join(store.dir, "releases")
    listed? = Enum.any?(state!(store).releases, &(root(store, &1) == root))
    if staged? and not listed?, do: remove(store, root), else: :ok
  end

  # --- for BeamDeploy.Release.Archive

  @doc "A name to extract under, on the same file system as the releases."
  @spec staging_path(t()) :: Path.t()
  def staging_path(store), do: Path.join([store.dir, "staging", unique()])

  @doc "The root whose equal files a new release may share. Not the base's: a cold deploy writes into its files."
  @spec link_source(t()) :: Path.t() | nil
  def link_source(store) do
    %{current: current, releases: releases} = state!(store)

    # Somebody may have removed one.
    [current | releases]
    |> Enum.reject(&(&1 == :base))
    |> Enum.map(&root(store, &1))
    |> Enum.find(&File.dir?/1)
  end

  @doc """
  Takes over what was extracted under a staging path. An identical release that is here already wins, unless files of it
  are gone: then it is replaced, durably, since it may be one that is listed.
  """
  @spec adopt(t(), Release.t()) :: {:ok, Release.t()} | {:error, File.posix()}
  def adopt(store, %Release{root: staged} = release) do
    # By the first digits: applications put sockets below RELEASE_ROOT, and their paths end at 108 bytes.
    short = "#{release.version}-#{String.slice(release.sha256, 0, 12)}"
    full = "#{release.version}-#{release.sha256}"

    with :ok <- write_manifest(staged, release), do: adopt_as([short, full], store, release)
  end

  @doc "Deletes a directory of the store. From the rename on it is gone for everybody."
  @spec remove(t(), Path.t()) :: :ok
  def remove(store, path) do
    trash = Path.join([store.dir, "trash", unique()])

    case File.rename(path, trash) do
      :ok -> delete(trash)
      {:error, :enoent} -> :ok
      {:error, posix} -> Logger.warning("cannot remove #{path}: #{:file.format_error(posix)}")
    end
  end

  defp adopt_as([name | longer], store, release) do
    root = Path.join([store.dir, "releases", name])

    case File.rename(release.root, root) do
      :ok ->
        {:ok, %{release | root: root}}

      {:error, posix} when posix in [:eexist, :enotempty] ->
        case identical(store, root, release) do
          {:ok, there} ->
            :ok = remove(store, release.root)
            {:ok, there}

          :damaged ->
            replace(store, root, release)

          :another when longer != [] ->
            adopt_as(longer, store, release)

          :another ->
            {:error, posix}
        end

      {:error, posix} ->
        {:error, posix}
    end
  end

  defp identical(store, root, %{version: version, sha256: sha256} = fresh) do
    case read_manifest(root) do
      {:ok, %{sha256: ^sha256} = there} ->
        if has?(root, fresh.root), do: {:ok, there}, else: :damaged

      {:ok, _another} ->
        :another

      # Its manifest is damaged as well; the list remembers.
      {:error, _why} ->
        if {version, sha256, Path.basename(root)} in state!(store).releases,
          do: :damaged,
          else: :another
    end
  end

  # By the names: what a release writes into its own files is its own affair.
  defp has?(there, fresh) do
    type = type(fresh)
    type(there) == type and (type != :directory or has_all?(there, fresh))
  end

  defp has_all?(there, fresh) do
    {:ok, names} = :file.list_dir_all(fresh)
    Enum.all?(names, &has?(:filename.join(there, &1), :filename.join(fresh, &1)))
  end

  defp type(path) do
    case :file.read_link_info(path, [:raw]) do
      {:ok, info} -> File.Stat.from_record(info).type
      {:error, _posix} -> nil
    end
  end

  defp replace(store, root, release) do
    Logger.warning("files of #{root} are gone: it is replaced by the same release")

    with :ok <- Native.sync_file_system(release.root),
         :ok <- remove(store, root),
         :ok <- File.rename(release.root, root),
         :ok <- Native.sync_file_system(root),
         do: {:ok, %{release | root: root}}
  end

  # --- opening

  defp make_private(dir) do
    with :ok <- File.mkdir_p(Path.dirname(dir)),
         :ok <- make_directory(dir),
         {:ok, stat} <- File.lstat(dir) do
      check_private(dir, stat)
    else
      {:error, posix} -> failed(dir, posix)
    end
  end

  # With its mode from the first instant: between mkdir and chmod somebody could put something into it.
  defp make_directory(dir) do
    case Native.make_private_directory(dir) do
      {:error, :eexist} -> :ok
      other -> other
    end
  end

  defp check_private(dir, stat) do
    user = Native.effective_user()

    cond do
      stat.type != :directory -> {:error, {:insecure_store, dir, {:not_a_directory, stat.type}}}
      stat.uid != user -> {:error, {:insecure_store, dir, {:owner, stat.uid, user}}}
      band(stat.mode, 0o077) != 0 -> {:error, {:insecure_store, dir, {:mode, mode(stat)}}}
      true -> :ok
    end
  end

  # Whoever may rename a directory above ours can put another in its place. Who owns the base release can plant code
  # without that, and the sticky bit of a temporary directory forbids it.
  defp check_above(dir, base) do
    trusted = [0, Native.effective_user() | owner(base.root)]

    dir
    |> Path.dirname()
    |> Stream.iterate(&Path.dirname/1)
    |> Enum.reduce_while(:ok, fn above, :ok ->
      cond do
        why = exposed(above, trusted) ->
          {:halt, {:error, {:insecure_store, dir, {:above, above, why}}}}

        above == "/" ->
          {:halt, :ok}

        true ->
          {:cont, :ok}
      end
    end)
  end

  defp exposed(above, trusted) do
    case File.stat(above) do
      {:ok, %{mode: mode} = stat} when band(mode, 0o1002) == 0o0002 -> {:mode, mode(stat)}
      {:ok, stat} -> if stat.uid not in trusted, do: {:owner, stat.uid}
      {:error, posix} -> {:unreadable, posix}
    end
  end

  defp owner(path) do
    case File.stat(path) do
      {:ok, stat} -> [stat.uid]
      {:error, _posix} -> []
    end
  end

  defp mode(stat), do: band(stat.mode, 0o7777)

  defp take_lock(dir) do
    case Native.lock_file(Path.join(dir, "lock")) do
      {:ok, lock} -> {:ok, lock}
      {:error, :eagain} -> {:error, {:store_in_use, dir}}
      {:error, posix} -> failed(dir, posix)
    end
  end

  defp recover(store) do
    with :ok <- make_directories(store),
         :ok <- spread(Path.join(store.dir, "staging")),
         {:ok, found} <- read_state(store),
         state = reconcile(store, found),
         :ok <- write_state(store, state) do
      remove_unlisted(store, state)
    end
  end

  defp make_directories(store) do
    ["releases", "staging", "trash"]
    |> Enum.map(&Path.join(store.dir, &1))
    |> Enum.reduce_while(:ok, fn dir, :ok ->
      case make_directory(dir) do
        :ok -> {:cont, :ok}
        {:error, posix} -> {:halt, failed(dir, posix)}
      end
    end)
  end

  defp spread(dir) do
    with {:error, posix} <- Native.spread_directory(dir), do: failed(dir, posix)
  end

  defp reconcile(store, nil), do: State.new(store.base_id)

  defp reconcile(store, %{base: base_id} = state) when base_id != store.base_id do
    Logger.notice("a new base release, #{store.base.version}, replaces what was deployed before")
    State.rebase(state, store.base_id)
  end

  defp reconcile(store, state) do
    state |> State.keep(&whole?(store, &1)) |> warn_of_loss(state)
  end

  defp warn_of_loss(state, %{current: current}) when state.current != current do
    Logger.error("the current release #{inspect(current)} is gone from the store")

    State.record(state, %{
      kind: :boot,
      from: current,
      to: state.current,
      outcome: {:error, "it is gone from the store"}
    })
  end

  defp warn_of_loss(state, _before), do: state

  defp whole?(store, {_version, sha256, _name} = key) do
    match?({:ok, %Release{sha256: ^sha256}}, read_manifest(root(store, key)))
  end

  defp remove_unlisted(store, state) do
    listed = for {_version, _sha256, name} <- state.releases, do: name

    for dir <- ["staging", "releases"],
        name <- list(Path.join(store.dir, dir)),
        dir == "staging" or name not in listed,
        do: :ok = remove(store, Path.join([store.dir, dir, name]))

    Enum.each(list(Path.join(store.dir, "trash")), fn name ->
      :ok = delete(Path.join([store.dir, "trash", name]))
    end)
  end

  # --- state

  defp state!(store) do
    case read_state(store) do
      {:ok, %{} = state} -> state
      {:ok, nil} -> raise File.Error, reason: :enoent, action: "read", path: state_path(store)
      {:error, reason} -> raise "the release store cannot be read: #{inspect(reason)}"
    end
  end

  defp read_state(store) do
    path = state_path(store)

    case File.read(path) do
      {:ok, bytes} ->
        with {:error, why} <- State.decode(bytes), do: {:error, {:corrupt_store, path, why}}

      {:error, :enoent} ->
        {:ok, nil}

      {:error, posix} ->
        failed(path, posix)
    end
  end

  # Calls come from a swap and from an operator at the same time.
  defp update(store, change) do
    :global.trans({{__MODULE__, store.dir}, self()}, fn -> do_update(store, change) end, [node()])
  end

  defp do_update(store, change) do
    with {:ok, state} <- change.(state!(store)), do: write_state(store, state)
  end

  defp write_state(store, state) do
    path = state_path(store)

    case Native.replace_file(path, State.encode(state)) do
      :ok -> :ok
      {:error, posix} -> failed(path, posix)
    end
  end

  defp drop_from_state(store, keep, spared?) do
    before = state!(store).releases
    pruned = update(store, &{:ok, State.prune(&1, keep, spared?)})
    with :ok <- pruned, do: {:ok, before -- state!(store).releases}
  end

  defp sync_unless_listed(store, state, key) do
    if key == :base or key in state.releases do
      :ok
    else
      case Native.sync_file_system(root(store, key)) do
        :ok -> :ok
        {:error, posix} -> failed(root(store, key), posix)
      end
    end
  end

  defp state_path(store), do: Path.join(store.dir, "state")

  # --- releases by their key: `:base`, or identity and directory name

  defp key(%Release{root: root}, %__MODULE__{base: %Release{root: root}}), do: :base

  defp key(%Release{} = release, _store),
    do: {release.version, release.sha256, Path.basename(release.root)}

  defp root(store, :base), do: store.base.root
  defp root(store, {_version, _sha256, name}), do: Path.join([store.dir, "releases", name])

  defp version(:base, store), do: store.base.version
  defp version({version, _sha256, _name}, _store), do: version

  defp locate!(key, store) do
    {:ok, release} = locate(key, store)
    release
  end

  defp locate(:base, store), do: {:ok, store.base}

  defp locate({version, _sha256, _name} = key, store) do
    with {:error, _why} <- store |> root(key) |> read_manifest(),
         do: {:error, {:damaged_release, version}}
  end

  defp write_manifest(root, release) do
    # The archive may hold one of that name: then it is none of ours, or a link to something else.
    File.write(Path.join(root, @manifest), State.seal(release.sha256), [:exclusive])
  end

  defp read_manifest(root) do
    with {:ok, bytes} <- File.read(Path.join(root, @manifest)),
         {:ok, sha256} <- State.unseal(bytes),
         {:ok, release} <- Release.read(root) do
      {:ok, %{release | sha256: sha256}}
    end
  end

  defp base_id(base) do
    files = [
      "releases/start_erl.data",
      "releases/#{base.version}/#{base.name}.rel",
      "releases/#{base.version}/start.boot"
    ]

    # A release without one of them differs from one that has it.
    contents = Enum.map(files, &File.read(Path.join(base.root, &1)))
    digest = :crypto.hash(:sha256, :erlang.term_to_binary(contents))
    {base.root, base.version, Base.encode16(digest, case: :lower)}
  end

  # --- small things

  defp delete(path) do
    case File.rm_rf(path) do
      {:ok, _removed} ->
        :ok

      {:error, posix, at} ->
        Logger.warning("cannot delete #{at}: #{:file.format_error(posix)}")
        :ok
    end
  end

  defp list(dir) do
    case File.ls(dir) do
      {:ok, names} -> names
      {:error, _posix} -> []
    end
  end

  defp failed(path, posix), do: {:error, {:store_failed, path, posix}}

  defp unique, do: Base.encode16(:crypto.strong_rand_bytes(8), case: :lower)

  defp present(value) when value in [nil, ""], do: nil
  defp present(value), do: value

  defp short_name(:nonode@nohost, otp_app), do: Atom.to_string(otp_app)
  defp short_name(node, _otp_app), do: node |> Atom.to_string() |> String.split("@") |> hd()

  defp beside_release(nil), do: nil

  defp beside_release(root) do
    dir = Path.join(root, "beam_deploy")
    if writable?(dir) or (not File.exists?(dir) and writable?(root)), do: dir
  end

  defp writable?(dir),
    do: match?({:ok, %File.Stat{type: :directory, access: :read_write}}, File.stat(dir))

  defp temporary, do: Path.join(System.tmp_dir!(), "beam_deploy-#{Native.effective_user()}")
end
