# The nodes of the tests' releases register with a daemon of their own, which ends with this VM.
BeamDeploy.Test.Epmd.start(fn stop -> System.at_exit(fn _status -> stop.() end) end)
|> then(&System.put_env("ERL_EPMD_PORT", &1))

ExUnit.start()
