defmodule BeamDeploy.Test.Instance do
  @moduledoc false
  # A release of the sample application that runs as an operator would run it: `bin/sample start` in an OS process of
  # its own, `bin/sample rpc`, and requests over HTTP.

  import BeamDeploy.Test.LogFile
  import ExUnit.Callbacks, only: [on_exit: 1]

  alias BeamDeploy.Test.{Http, Root, SampleRelease, Wait}

  defstruct [:root, :port, :name, :environment, :log, :store, :shell]

  # The release ends with the test's VM, however that ends: then the shell's standard input is closed.
  @shell """
  exec >"$0" 2>&1
  "$@" </dev/null 3<&- &
  release=$!
  (while read -r _; do :; done; kill -9 $release) <&3 >/dev/null 2>&1 &
  wait $release
  status=$?
  kill $! 2>/dev/null
  echo "exit status $status"
  exit $status
  """

  @doc """
  Starts version 0.1.0 and waits until it serves. Options: `:variant`, `:environment`, `:start_options` (for
  `BeamDeploy.start_link/2`), `:await` (false returns at once).
  """
  def start(tmp_dir, options \\ []) do
    instance = new(tmp_dir, options)
    shell = run(instance)
    instance = %{instance | shell: shell}

    on_exit(fn ->
      kill(instance)
      File.rm_rf!(instance.environment["BEAM_DEPLOY_DIR"])
    end)

    if Keyword.get(options, :await, true), do: await_serving(instance)
    instance
  end

  @doc "Starts the same parent once more, after its end."
  def restart(instance) do
    # What the last run printed would be taken for this one's.
    File.rm(instance.log)
    instance = %{instance | shell: run(instance)}
    on_exit(fn -> kill(instance) end)
    await_serving(instance)
    instance
  end

  defp new(tmp_dir, options) do
    number = System.unique_integer([:positive])
    port = Http.free_port()
    name = Keyword.get(options, :name, "t#{System.pid()}n#{number}")
    # ExUnit's own directory has a long name, and the store is to have what is usual.
    store = Keyword.get_lazy(options, :store, fn -> Path.join(System.tmp_dir!(), name) end)

    environment =
      Map.merge(
        %{
          "BEAM_DEPLOY" => "1",
          "BEAM_DEPLOY_DIR" => store,
          "RELEASE_NODE" => "#{name}@127.0.0.1",
          "RELEASE_DISTRIBUTION" => "name",
          "RELEASE_TMP" => Path.join(tmp_dir, "tmp"),
          "ERL_CRASH_DUMP" => "/dev/null",
          "SAMPLE_GATE" => gate(tmp_dir),
          "SAMPLE_PORT" => "#{port}",
          "SAMPLE_OPTIONS" => inspect(Keyword.get(options, :start_options, []))
        },
        Map.new(Keyword.get(options, :environment, %{}))
      )

    %__MODULE__{
      root: SampleRelease.unpacked("0.1.0", Keyword.get(options, :variant, :good)),
      port: port,
      name: name,
      environment: environment,
      log: Path.join(tmp_dir, "log"),
      store: Path.join(store, name)
    }
  end

  defp run(instance) do
    Port.open({:spawn_executable, "/bin/sh"}, [
      :binary,
      :exit_status,
      args: ["-c", "exec 3<&0; " <> @shell, instance.log | as_a_service([bin(instance), "start"])],
      env: for({name, value} <- instance.environment, do: {to_charlist(name), to_charlist(value)})
    ])
  end

  # Without the capabilities that whoever runs the tests may have: some system calls ask for them.
  defp as_a_service(command) do
    if Root.root?(),
      do: ["/usr/bin/setpriv", "--bounding-set=-all", "--inh-caps=-all" | command],
      else: command
  end

  defp bin(instance), do: Path.join(instance.root, "bin/sample")

  def await_serving(instance) do
    Wait.until(fn -> serving?(instance) end,
      otherwise: fn -> "the release does not serve:\n" <> log(instance) end
    )
  end

  # The first peer answers a moment before the parent has seen its health check pass. Killed in that moment, it is one
  # that did not come up, and the parent does not start.
  defp serving?(%{environment: %{"BEAM_DEPLOY" => "1"}} = instance),
    do: log(instance) =~ ~r/swap health version=\S+ node=\S+ [\d.]+ ms/

  defp serving?(instance), do: match?({:ok, %{status: 200}}, Http.get(instance.port, "/version"))

  @doc "Waits until the parent takes a peer for the one that serves: after a crash it does so a moment after clients do."
  def await_active(instance),
    do: Wait.until(fn -> eval!(instance, "BeamDeploy.peer_node()") != nil end)

  @doc "The status with which the parent exited."
  def await_exit(%{shell: shell} = instance) do
    receive do
      {^shell, {:exit_status, status}} -> status
    after
      Wait.patience() -> raise "the parent does not end:\n" <> log(instance)
    end
  end

  @doc "What an expression prints on the parent, and the exit status of `bin/sample rpc`."
  def rpc(instance, expression) do
    System.cmd(bin(instance), ["rpc", expression],
      env: instance.environment,
      stderr_to_stdout: true
    )
  end

  @doc "The value of an expression on the parent."
  def eval!(instance, expression) do
    {output, 0} =
      rpc(
        instance,
        "IO.puts(\"value \" <> Base.encode64(:erlang.term_to_binary((#{expression}))))"
      )

    [_, encoded] = Regex.run(~r/^value (\S+)$/m, output)
    encoded |> Base.decode64!() |> :erlang.binary_to_term()
  end

  @doc "The value of an expression in the active peer."
  def eval_in_peer!(instance, expression) do
    eval!(
      instance,
      ":erpc.call(BeamDeploy.peer_node(), Code, :eval_string, [#{inspect(expression)}]) |> elem(0)"
    )
  end

  @doc """
  What becomes of the peers that the instance of this directory boots from now on: "hold" keeps them from serving,
  "crash 0.2.0" ends those of that version, "open" lets them, and those that were held, go on.
  """
  def set_gate(tmp_dir, what) do
    # Never seen half written.
    partial = gate(tmp_dir) <> ".partial"
    File.write!(partial, what)
    File.rename!(partial, gate(tmp_dir))
  end

  defp gate(tmp_dir), do: Path.join(tmp_dir, "gate")

  def upgrade(instance, tarball, options \\ []),
    do: eval!(instance, "BeamDeploy.upgrade(#{inspect(tarball)}, #{inspect(options)})")

  @doc "A swap that has come as far as the boot of the new peer, and stays there until the gate says something else."
  def held_upgrade(instance, tmp_dir, tarball) do
    set_gate(tmp_dir, "hold")
    upgrade = Task.async(fn -> upgrade(instance, tarball) end)
    Wait.until(fn -> length(peer_os_pids(instance)) == 2 end)
    upgrade
  end

  @doc "A request that the active peer has in flight, until the file is there."
  def held_request(instance, file) do
    request = Task.async(fn -> Http.get(instance.port, "/hold?#{URI.encode(file)}") end)
    connections = "DynamicSupervisor.count_children(Sample.Connections).active"
    Wait.until(fn -> eval_in_peer!(instance, connections) >= 1 end)
    request
  end

  def version(instance), do: get!(instance, "/version")
  def peer_os_pid(instance), do: instance |> get!("/os_pid") |> String.to_integer()

  def get!(instance, path) do
    {:ok, %{status: 200, body: body}} = Http.get(instance.port, path)
    body
  end

  @doc "The OS pids of this instance's VMs, by the node name on their command lines."
  def os_pids(instance), do: for({pid, _command} <- vms(instance), do: pid)

  def peer_os_pids(instance),
    do: for({pid, command} <- vms(instance), peer?(instance, command), do: pid)

  def parent_os_pid(instance) do
    [pid] = for {pid, command} <- vms(instance), not peer?(instance, command), do: pid
    pid
  end

  # Each with the command line it was found by: a peer may end at any moment, and one that were looked at again would
  # be taken for the parent.
  defp vms(instance) do
    vms =
      for pid <- File.ls!("/proc"),
          pid =~ ~r/^\d+$/,
          {:ok, command} <- [File.read("/proc/#{pid}/cmdline")],
          command =~ "beam.smp" and not (command =~ "\0rpc-") and
            command =~ ~r/\0#{instance.name}(_blue|_green)?[@\0]/,
          into: %{},
          do: {String.to_integer(pid), command}

    # A VM that starts forks its helper for ports, which has the command line of the VM until it executes its own.
    for {pid, command} <- vms,
        {:ok, parent} <- [parent(pid)],
        not is_map_key(vms, parent),
        do: {pid, command}
  end

  defp peer?(instance, command), do: command =~ ~r/\0#{instance.name}_(blue|green)@/

  defp parent(pid) do
    with {:ok, status} <- File.read("/proc/#{pid}/status") do
      [_line, parent] = Regex.run(~r/^PPid:\s+(\d+)$/m, status)
      {:ok, String.to_integer(parent)}
    end
  end

  @doc "The names of the releases in the store."
  def staged(instance) do
    for directory <- ["releases", "staging", "trash"],
        name <- File.ls!(Path.join(instance.store, directory)),
        do: name
  end

  def signal(os_pid, signal), do: {_, 0} = System.cmd("kill", ["-#{signal}", "#{os_pid}"])

  defp kill(instance) do
    for pid <- os_pids(instance), do: System.cmd("kill", ["-9", "#{pid}"], stderr_to_stdout: true)
    Wait.until(fn -> os_pids(instance) == [] end)
  end
end
