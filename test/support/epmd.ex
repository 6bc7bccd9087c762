defmodule BeamDeploy.Test.Epmd do
  @moduledoc false
  # A port mapper daemon for the nodes of the tests: the one that a node starts by itself outlives it.

  alias BeamDeploy.Test.Http

  @doc "Starts one and returns its port, for ERL_EPMD_PORT. `at_end` is given a function that ends it."
  def start(at_end) do
    port = "#{Http.free_port()}"
    epmd = System.find_executable("epmd") || Path.join([:code.root_dir(), "bin", "epmd"])

    daemon =
      Port.open({:spawn_executable, epmd}, [
        :binary,
        args: ["-port", port, "-address", "127.0.0.1"]
      ])

    {:os_pid, os_pid} = Port.info(daemon, :os_pid)
    at_end.(fn -> System.cmd("kill", ["#{os_pid}"], stderr_to_stdout: true) end)
    port
  end
end
