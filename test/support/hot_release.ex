defmodule BeamDeploy.Test.HotRelease do
  @moduledoc false
  # Releases of test/fixtures/hot_app, built by `mix release` once for each content, and one that runs as an operator
  # would run it: `bin/hot_app start` in an OS process of its own, reached through a socket of its control process.

  import BeamDeploy.Test.LogFile
  import ExUnit.Callbacks, only: [on_exit: 1]

  alias BeamDeploy.Test.{Fixture, Wait}

  defstruct [:root, :control, :log, :environment, :shell, :socket, :os_pid]

  # The release ends with the test's VM, however that ends: then the shell's standard input is closed.
  @shell """
  exec >>"$0" 2>&1
  "$@" </dev/null 3<&- &
  release=$!
  (while read -r _; do :; done; kill -9 $release) <&3 >/dev/null 2>&1 &
  wait $release
  status=$?
  kill $! 2>/dev/null
  exit $status
  """

  @doc "The path of a tarball: its version, the generation of the code in it, and what is special about it."
  def tarball(version, code, variant \\ :plain) do
    path = Path.join(Fixture.directory("hot_app"), "#{version}-#{code}-#{variant}.tar.gz")

    Fixture.once(path, fn -> build(path, version, code, variant) end)
  end

  defp build(path, version, code, variant) do
    build = Fixture.build_path("hot_app")

    environment = [
      {"HOT_VERSION", version},
      {"HOT_CODE", "#{code}"},
      {"HOT_VARIANT", "#{variant}"}
    ]

    # Mix does not notice what has changed in the environment. Its dependencies stay compiled.
    File.rm_rf!(Path.join(build, "lib/hot_app"))
    File.rm_rf!(Path.join(build, "rel"))
    Fixture.build("hot_app", :hot_app, version, build, environment, path)
  end

  @doc "Starts a release in a directory of its own."
  def start(tmp_dir, tarball, environment \\ %{}) do
    root = Path.join(tmp_dir, "hot_app")
    :ok = :erl_tar.extract(tarball, [:compressed, cwd: String.to_charlist(root)])

    boot(%__MODULE__{
      root: root,
      control: Path.join(tmp_dir, "control"),
      log: Path.join(tmp_dir, "log"),
      environment:
        Map.merge(
          %{
            "RELEASE_DISTRIBUTION" => "none",
            "RELEASE_TMP" => Path.join(tmp_dir, "tmp"),
            "HOT_CONTROL" => Path.join(tmp_dir, "control"),
            "ERL_CRASH_DUMP" => "/dev/null"
          },
          environment
        )
    })
  end

  @doc "Starts the release of an instance (again) and waits for it."
  def boot(instance) do
    File.rm(instance.control)

    shell =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        :exit_status,
        args: [
          "-c",
          "exec 3<&0; " <> @shell,
          instance.log,
          Path.join(instance.root, "bin/hot_app"),
          "start"
        ],
        env:
          for({name, value} <- instance.environment, do: {to_charlist(name), to_charlist(value)})
      ])

    Wait.until(fn -> File.exists?(instance.control) end,
      otherwise: fn -> "the release does not start:\n" <> log(instance) end
    )

    [port, os_pid] = instance.control |> File.read!() |> String.split()
    on_exit(fn -> System.cmd("kill", ["-9", os_pid], stderr_to_stdout: true) end)
    %{instance | shell: shell, socket: connect(String.to_integer(port)), os_pid: os_pid}
  end

  @doc "A further connection, for a test process of its own."
  def connection(%__MODULE__{} = instance) do
    {:ok, {_address, port}} = :inet.peername(instance.socket)
    %{instance | socket: connect(port)}
  end

  defp connect(port) do
    {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, packet: 4, active: false])
    socket
  end

  @doc "`kill -9`, and waits until it is over."
  def kill(%__MODULE__{shell: shell} = instance) do
    System.cmd("kill", ["-9", instance.os_pid])

    receive do
      {^shell, {:exit_status, _status}} -> :ok
    after
      Wait.patience() -> raise "the release does not end"
    end
  end

  @doc "The value of an expression in the release."
  def eval!(%__MODULE__{socket: socket} = instance, expression, timeout \\ Wait.patience()) do
    :ok = :gen_tcp.send(socket, expression)

    case :gen_tcp.recv(socket, 0, timeout) do
      {:ok, answer} ->
        case :erlang.binary_to_term(answer) do
          {:ok, value} -> value
          {:raised, message} -> raise "in the release: #{message}\n#{log(instance)}"
        end

      {:error, reason} ->
        raise "the release does not answer: #{inspect(reason)}\n#{log(instance)}"
    end
  end

  # Enough for a busy machine.
  @options [otp_app: :hot_app, suspend_timeout: 60_000, code_change_timeout: 60_000]

  @doc "`BeamDeploy.HotUpgrade.run/2` in the release."
  def hot_upgrade(instance, tarball, options \\ []) do
    options = Keyword.merge(@options, options)
    eval!(instance, "BeamDeploy.HotUpgrade.run(#{inspect(tarball)}, #{inspect(options)})")
  end
end
