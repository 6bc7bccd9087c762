defmodule BeamDeploy.Test.Root do
  @moduledoc false
  # What only root may do, and whether the tests may.

  import ExUnit.Callbacks, only: [on_exit: 1]

  @spec root?() :: boolean()
  def root?, do: BeamDeploy.Native.effective_user() == 0

  @doc "A small disk at a directory, for as long as the test runs. Options as of tmpfs: `size=4m,mode=0700`."
  @spec mount_disk(Path.t(), String.t()) :: :ok
  def mount_disk(directory, options) do
    File.mkdir_p!(directory)
    {_output, 0} = System.cmd("mount", ["-t", "tmpfs", "-o", options, "tmpfs", directory])
    on_exit(fn -> System.cmd("umount", ["-l", directory]) end)
  end
end
