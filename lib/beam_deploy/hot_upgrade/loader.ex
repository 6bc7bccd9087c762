defmodule BeamDeploy.HotUpgrade.Loader do
  @moduledoc false
  # Responsible for: changed and new modules: prepared while all runs, then loaded at once or not at all, and put back.
  # Not for: processes that run them, except those that old code would be taken from.

  alias BeamDeploy.HotUpgrade.{Plan, Running}

  require Logger

  # How long somebody may still be on his way out of code that has to be put back.
  @leave_timeout 1_000

  @type t :: %{
          modules: [module()],
          prepared: term(),
          changed: [module()],
          back: term(),
          new: [module()],
          native: [{module(), charlist(), binary()}]
        }

  @doc """
  Object code of the changed modules as it is loaded now, to go back to. Modules whose file is gone or was replaced are
  an error unless `force?`.
  """
  @spec previous([module()], boolean()) ::
          {:ok, [{module(), charlist(), binary()}]}
          | {:error, {:old_code_unavailable, [module()]}}
  def previous(modules, force?) do
    found = for module <- modules, do: {module, Running.object_code(module)}
    missing = for {module, {:error, _why}} <- found, do: module

    if missing == [] or force?,
      do: {:ok, for({module, {:ok, path, beam}} <- found, do: {module, path, beam})},
      else: {:error, {:old_code_unavailable, missing}}
  end

  @doc """
  Makes room for new code: what upgrades before this one replaced is removed from memory. With processes still in it
  they are named, and only `force?` removes it, and them.
  """
  @spec purge([module()], boolean()) :: :ok | {:error, {:old_code_in_use, [pid()]}}
  def purge(modules, force?) do
    held =
      for module <- modules,
          :erlang.check_old_code(module),
          not :code.soft_purge(module),
          do: module

    cond do
      held == [] ->
        :ok

      force? ->
        Logger.warning(
          "beam_deploy: hot upgrade ends processes in old code of #{inspect(held)}: #{inspect(holders(held))}"
        )

        Enum.each(held, &:code.purge/1)

      true ->
        {:error, {:old_code_in_use, holders(held)}}
    end
  end

  defp holders(modules) do
    for pid <- Process.list(),
        pid != self(),
        Enum.any?(modules, &(:erlang.check_process_code(pid, &1) == true)),
        do: pid
  end

  @doc "Prepares the code of the changes. `locate` says which file each module is from."
  @spec prepare([Plan.change()], (Plan.change() -> Path.t()), [{module(), charlist(), binary()}]) ::
          {:ok, t()} | {:error, {:load_failed, [{module(), term()}]}}
  def prepare(changes, locate, previous) do
    # The verdict is spoken: from here on this code is trusted, and its names become atoms.
    named =
      for change <- changes,
          do:
            {change,
             {String.to_atom(change.name), String.to_charlist(locate.(change)), change.bytes}}

    {native, plain} = Enum.split_with(named, fn {change, _module} -> change.facts.on_load end)
    plain = Enum.map(plain, &elem(&1, 1))

    # The way back as well: when it is needed, everything waits for it, and it has to succeed.
    with {:ok, prepared} <- prepare_in_portions(plain),
         {:ok, back} <- prepare_in_portions(previous) do
      {:ok,
       %{
         modules: Enum.map(plain, &elem(&1, 0)),
         prepared: prepared,
         changed: Enum.map(previous, &elem(&1, 0)),
         back: back,
         new: for({%{kind: :new}, {module, _path, _bytes}} <- named, do: module),
         native: Enum.map(native, &elem(&1, 1))
       }}
    else
      {:error, errors} -> {:error, {:load_failed, errors}}
    end
  end

  # `:code.prepare_loading/1` starts a process for each module, and each of them keeps its scheduler from anybody else until
  # it is done: 500 at once made every other process wait for 0.3 s. Half of the schedulers stay free of it. What it
  # answers is a list under a tag.
  defp prepare_in_portions(modules) do
    portion = max(div(System.schedulers_online(), 2), 1)
    {:ok, {tag, []}} = :code.prepare_loading([])

    {prepared, errors} =
      modules
      |> Enum.chunk_every(portion)
      |> Enum.reduce({[], []}, fn modules, {prepared, errors} ->
        case :code.prepare_loading(modules) do
          {:ok, {^tag, more}} -> {more ++ prepared, errors}
          {:error, more} -> {prepared, more ++ errors}
        end
      end)

    if errors == [], do: {:ok, {tag, prepared}}, else: {:error, errors}
  end

  @doc "All modules, or none of them."
  @spec load(t()) :: :ok | {:error, {:load_failed, [{module(), term()}]}}
  def load(%{modules: []}), do: :ok

  def load(loader) do
    case :code.finish_loading(loader.prepared) do
      :ok -> :ok
      {:error, errors} -> {:error, {:load_failed, errors}}
    end
  end

  @doc "New modules with native code: they run a function when they are loaded, which nothing can prepare."
  @spec load_native(t()) :: :ok | {:error, {:load_failed, [{module(), term()}]}}
  def load_native(loader) do
    errors =
      for {module, path, beam} <- loader.native,
          {:error, reason} <- [:code.load_binary(module, path, beam)],
          do: {module, reason}

    if errors == [], do: :ok, else: {:error, {:load_failed, errors}}
  end

  @doc """
  Puts the code back as it was before `load/1`. Answers the processes that had to be ended for it: there is room for two
  versions of a module, so whoever is still in the first one when it has to be loaded again cannot stay.
  """
  @spec undo(t()) :: [pid()]
  def undo(loader) do
    held = leave(loader.changed, System.monotonic_time(:millisecond) + @leave_timeout)
    ended = if held == [], do: [], else: holders(held)
    Enum.each(held, &:code.purge/1)

    :ok = :code.finish_loading(loader.back)

    Enum.each(loader.new, fn module ->
      :code.purge(module)
      :code.delete(module)
      :code.soft_purge(module)
    end)

    ended
  end

  defp leave(modules, deadline) do
    held = Enum.reject(modules, &:code.soft_purge/1)

    if held == [] or System.monotonic_time(:millisecond) >= deadline do
      held
    else
      Process.sleep(10)
      leave(held, deadline)
    end
  end

  @doc "Modules that the new release does not have. Code that somebody still runs stays until then."
  @spec remove([module()]) :: :ok
  def remove(modules) do
    Enum.each(modules, fn module ->
      if :code.soft_purge(module) and :code.delete(module), do: :code.soft_purge(module)
    end)
  end
end
