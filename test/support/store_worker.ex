defmodule BeamDeploy.Test.StoreWorker do
  @moduledoc false
  # What a parent does with its store, again and again, in an OS process of its own that a test kills.

  alias BeamDeploy.Release
  alias BeamDeploy.Release.{Archive, Store}
  alias BeamDeploy.Test.Wait

  @doc "Starts it, and answers the port and OS pid once it is at work."
  def start(dir, base_root, tarballs) do
    code = "BeamDeploy.Test.StoreWorker.run(#{inspect([dir, base_root | tarballs])})"
    ebin = Application.app_dir(:beam_deploy, "ebin")

    port =
      Port.open({:spawn_executable, System.find_executable("elixir")}, [
        :binary,
        :exit_status,
        :stderr_to_stdout,
        line: 1000,
        args: ["-pa", ebin, "-e", code]
      ])

    receive do
      {^port, {:data, {:eol, "working"}}} -> {port, elem(Port.info(port, :os_pid), 1)}
      {^port, {:data, {_eol, line}}} -> raise "the worker says: #{line}"
      {^port, {:exit_status, status}} -> raise "the worker ended with #{status}"
    after
      Wait.patience() -> raise "the worker does not start"
    end
  end

  def kill({port, os_pid}) do
    {"", 0} = System.cmd("kill", ["-9", "#{os_pid}"])

    receive do
      {^port, {:exit_status, _status}} -> :ok
    after
      Wait.patience() -> raise "the worker does not end"
    end
  end

  def run([dir, base_root | tarballs]) do
    {:ok, base} = Release.read(base_root)
    {:ok, store} = Store.open(dir, base)
    IO.puts("working")
    tarballs |> Stream.cycle() |> Enum.each(&deploy(store, &1))
  end

  defp deploy(store, tarball) do
    {:ok, release} = Archive.stage(tarball, store, otp_app: :my_app)
    entry = %{kind: :blue_green, from: Release.id(Store.current(store)), to: Release.id(release)}
    :ok = Store.promote(store, release, Map.put(entry, :outcome, :ok))
    {:ok, _pruned} = Store.prune(store, 2)
  end
end
