# The nodes of the tests' releases register with a daemon of their own, which ends with this VM.
BeamDeploy.Test.Epmd.start(fn stop -> System.at_exit(fn _status -> stop.() end) end)
|> then(&System.put_env("ERL_EPMD_PORT", &1))

# Network namespaces take iproute2 and root, or a system that lets others have them.
namespaces? =
  Enum.all?(["unshare", "ip"], &System.find_executable/1) and
    match?({_, 0}, System.cmd("unshare", ["--net", "ip", "link"], stderr_to_stdout: true))

# A busy machine takes its time.
ExUnit.start(
  exclude: if(namespaces?, do: [], else: [:namespaces]),
  timeout: 1_800_000,
  assert_receive_timeout: 60_000
)
