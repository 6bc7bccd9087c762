# The nodes of the tests' releases register with a daemon of their own, which ends with this VM.
epmd_port = BeamDeploy.Test.Http.free_port()
System.put_env("ERL_EPMD_PORT", "#{epmd_port}")
epmd = System.find_executable("epmd") || Path.join([:code.root_dir(), "bin", "epmd"])

epmd =
  Port.open({:spawn_executable, epmd}, [
    :binary,
    args: ["-port", "#{epmd_port}", "-address", "127.0.0.1"]
  ])

{:os_pid, epmd_os_pid} = Port.info(epmd, :os_pid)
System.at_exit(fn _status -> System.cmd("kill", ["#{epmd_os_pid}"], stderr_to_stdout: true) end)

ExUnit.start()
