defmodule BeamDeploy.HotUpgrade.Aside do
  @moduledoc false
  # Responsible for: directories for the code of a node that was not booted from a release, and their end: a node can
  # load from one for as long as it lives, however it ends. So each holds a lock that ends with its node, and whoever makes
  # the next one removes those that nobody needs any more.
  # Not for: what is in them.

  alias BeamDeploy.Native

  @prefix "beam_deploy-hot-"
  # One that was made a moment ago may not hold its lock yet.
  @young_s 60

  @doc "A new directory, this user's alone."
  @spec create(String.t()) :: {:ok, Path.t()} | {:error, File.posix()}
  def create(version) do
    :ok = sweep()
    unique = Base.encode16(:crypto.strong_rand_bytes(4), case: :lower)
    directory = Path.join(System.tmp_dir!(), "#{@prefix}#{version}-#{unique}")

    with :ok <- Native.make_private_directory(directory),
         {:ok, lock} <- Native.lock_file(lock_path(directory)) do
      :persistent_term.put({__MODULE__, directory}, lock)
      {:ok, directory}
    end
  end

  @doc "Removes one of this node's."
  @spec discard(Path.t()) :: :ok
  def discard(directory) do
    File.rm_rf!(directory)
    if lock = held(directory), do: :ok = Native.unlock_file(lock)
    :persistent_term.erase({__MODULE__, directory})
    :ok
  end

  @doc "Removes all that nobody needs: of nodes that have ended, and of this one what it has left for later code."
  @spec sweep() :: :ok
  def sweep do
    case System.tmp_dir!()
         |> Path.join(@prefix <> "*")
         |> Path.wildcard()
         |> Enum.filter(&ours?/1) do
      [] ->
        :ok

      directories ->
        used = used()
        Enum.each(directories, &unless(needed?(&1, used), do: discard(&1)))
    end
  end

  # Others may put what they like into a directory for all.
  defp ours?(directory) do
    match?({:ok, %{type: :directory}}, File.lstat(directory)) and
      File.lstat!(directory).uid == Native.effective_user()
  end

  defp needed?(directory, used) do
    if held(directory),
      do: Enum.any?(used, &String.starts_with?(&1, directory <> "/")),
      else: young?(directory) or locked?(directory)
  end

  # What is loaded is looked for on disk when it is replaced, so that it could be put back.
  defp used do
    loaded = for {_module, path} <- :code.all_loaded(), is_list(path), do: path
    Enum.map(loaded ++ :code.get_path(), &List.to_string/1)
  end

  defp young?(directory) do
    case File.stat(directory, time: :posix) do
      {:ok, stat} -> System.os_time(:second) - stat.mtime < @young_s
      # Somebody else has just removed it.
      {:error, _posix} -> true
    end
  end

  defp locked?(directory) do
    case Native.lock_file(lock_path(directory)) do
      {:ok, lock} ->
        :ok = Native.unlock_file(lock)
        false

      {:error, _locked} ->
        true
    end
  end

  defp held(directory), do: :persistent_term.get({__MODULE__, directory}, nil)
  defp lock_path(directory), do: Path.join(directory, "lock")
end
