defmodule BeamDeploy.HotUpgrade.Undo do
  @moduledoc false
  # Responsible for: states and code as they were, however far the upgrade had come.
  # Not for: when that is to be, and the files on disk.

  alias BeamDeploy.HotUpgrade.{CodePath, Loader, Migration, SystemMessages}

  @type t :: %{restored: SystemMessages.question(), ended: [pid()]}

  @doc "The processes are to be resumed after it, and then `settle/3`."
  @spec run(Migration.t(), Loader.t(), CodePath.t()) :: t()
  def run(migration, loader, path) do
    restored = Migration.restore(migration)
    ended = Loader.undo(loader)
    :ok = CodePath.set(path)
    %{restored: restored, ended: ended}
  end

  @doc "Waits for processes that are still on their way back. Answers those that had to be ended."
  @spec settle(t(), Migration.t(), timeout()) :: [pid()]
  def settle(undo, migration, timeout) do
    stuck = Migration.await_restored(undo.restored, timeout)
    :ok = Migration.finish(migration)
    undo.ended ++ stuck
  end
end
