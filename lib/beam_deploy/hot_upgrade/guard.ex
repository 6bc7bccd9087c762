defmodule BeamDeploy.HotUpgrade.Guard do
  @moduledoc false
  # Responsible for: that no process stays suspended when the upgrade's own process is killed.
  # Not for: any other ending, after which the upgrade resumes them itself.

  @doc "Watches over the calling process."
  @spec start() :: pid()
  def start do
    upgrade = self()
    spawn(fn -> watch(Process.monitor(upgrade), []) end)
  end

  @doc "To be told before the processes are suspended."
  @spec add(pid(), [pid()]) :: :ok
  def add(guard, pids) do
    send(guard, {:add, pids})
    :ok
  end

  @doc "All are resumed."
  @spec stop(pid()) :: :ok
  def stop(guard) do
    send(guard, :stop)
    :ok
  end

  defp watch(monitor, pids) do
    receive do
      {:add, more} -> watch(monitor, more ++ pids)
      :stop -> :ok
      {:DOWN, ^monitor, :process, _upgrade, _reason} -> Enum.each(pids, &resume/1)
    end
  end

  # The answer comes to nobody.
  defp resume(pid), do: send(pid, {:system, {self(), make_ref()}, :resume})
end
