defmodule BeamDeploy.HotUpgrade.Undo do
  @moduledoc false
  # Responsible for: states and code as they were, once the new code has been loaded.
  # Not for: when that is to be, and the files on disk.

  alias BeamDeploy.HotUpgrade.{CodePath, Loader, Migration, SystemMessages}

  @type t :: %{
          restored: SystemMessages.question(),
          ended: [pid()],
          path: :ok | {:error, {:code_path, term()}}
        }

  @doc """
  To be done once: what `loader` has prepared can be loaded once. The processes are to be resumed after it, and then
  `settle/3`.
  """
  @spec run(Migration.t(), Loader.t(), CodePath.t(), Migration.newcomers()) :: t()
  def run(migration, loader, path, newcomers) do
    restored = Migration.restore(migration)
    held = Loader.undo(loader)
    path = CodePath.set(path)

    # Those that began in the new code have states that the old one does not know, and none to go back to.
    begun = Migration.begun(migration, newcomers)
    Enum.each(begun, &Process.exit(&1, :kill))
    %{restored: restored, ended: held ++ begun, path: path}
  end

  @doc "Waits for processes that are still on their way back. Answers those that had to be ended."
  @spec settle(t(), Migration.t(), timeout()) :: [pid()]
  def settle(undo, migration, timeout) do
    stuck = Migration.await_restored(undo.restored, timeout)
    :ok = Migration.finish(migration)
    undo.ended ++ stuck
  end
end
