defmodule BeamDeploy.BlueGreen.Peer do
  @moduledoc false
  # Responsible for: peers as the parent sees them: start, calls with a deadline, end; foreign failures are translated here.
  # Not for: archives, listeners, or why a peer is started.

  alias BeamDeploy.{Native, Release, Remote}
  alias BeamDeploy.BlueGreen.Output
  alias BeamDeploy.Release.Boot

  @enforce_keys [:node, :side, :release, :control, :os_pid, :output, :files, :roots]
  defstruct [:node, :side, :release, :control, :os_pid, :output, :files, :roots]

  @type t :: %__MODULE__{
          node: node(),
          side: :blue | :green,
          release: Release.t(),
          control: pid(),
          os_pid: pos_integer() | nil,
          output: pid(),
          files: [Path.t()],
          # Where the code that it runs lies: hot upgrades add to it.
          roots: [Path.t()]
        }

  # How long a VM that got SIGKILL may take to be gone: the kernel has its memory to give back.
  @kill_timeout 30_000

  # A peer may be hidden: by its vm.args, or because it does not listen.
  @all_nodes [node_type: :all]

  @doc """
  Starts the VM of a release, without waiting for anything. `context` holds `:side`, `:outgoing` (node or nil), `:base` (the
  parent's release), `:run_dir`, `:socket` and `:preload` (module names as lines).
  """
  @spec start(Release.t(), map()) :: {:ok, t()} | {:error, term()}
  def start(%Release{} = release, %{side: side, run_dir: run_dir} = context) do
    node = node_name(node(), side, System.get_env("BEAM_DEPLOY_PEER_HOST"))

    [boot, modules, cookie, log] =
      for extension <- ["boot", "modules", "cookie", "log"],
          do: Path.join(run_dir, "#{side}.#{extension}")

    with {:ok, script} <- read_boot_script(release),
         {:ok, script} <- Boot.boot_script(script),
         :ok <- File.write(boot, script),
         :ok <- File.write(modules, context.preload),
         {:ok, output} <- start_output(log),
         :ok <- write_secret(cookie, Atom.to_string(Node.get_cookie()), output) do
      # A connection that is left of the last peer of that name would be taken for this one's.
      _ = Node.disconnect(node)

      command =
        Boot.command(
          release,
          %{
            node: node,
            long_names?: long_names?(),
            listens?: listens?(),
            parent: node(),
            side: side,
            outgoing: context.outgoing,
            cookie: cookie,
            socket: context.socket,
            boot: Path.rootname(boot),
            output: log,
            preload: modules
          },
          context.base,
          System.get_env()
        )

      peer = %__MODULE__{
        node: node,
        side: side,
        release: release,
        control: nil,
        os_pid: nil,
        output: output,
        files: [boot, modules, cookie],
        roots: [release.root]
      }

      start_control(peer, command)
    end
  end

  defp start_output(path),
    do: DynamicSupervisor.start_child(BeamDeploy.PeerSupervisor, {Output, path})

  # For the peer, which removes it. The environment that `:peer` would give it is part of what is logged when `:peer` crashes.
  defp write_secret(path, secret, output) do
    _ = File.rm(path)

    with :ok <- File.touch(path),
         :ok <- File.chmod(path, 0o600),
         :ok <- File.write(path, secret) do
      :ok
    else
      {:error, reason} ->
        finish_output(output)
        {:error, {:store_failed, path, reason}}
    end
  end

  defp start_control(peer, command) do
    options =
      Map.merge(command, %{
        name: peer.node,
        longnames: long_names?(),
        connection: :standard_io,
        # Returns at once. Whether the peer comes up is told by its own connection, or by its end.
        wait_boot: {self(), make_ref()},
        shutdown: :close
      })

    spec = %{
      id: peer.node,
      start: {__MODULE__, :start_peer, [options, Output.device(peer.output)]},
      restart: :temporary,
      shutdown: 5_000
    }

    case DynamicSupervisor.start_child(BeamDeploy.PeerSupervisor, spec) do
      {:ok, control} ->
        port = port(control)
        if port, do: :ok = Output.own(peer.output, port, control)
        {:ok, %{peer | control: control, os_pid: port && os_pid(port)}}

      {:error, reason} ->
        clean_up(
          peer,
          {:error, {:boot_failed, %{version: peer.release.version, reason: reason, output: ""}}}
        )
    end
  end

  # What the peer prints before its console has taken over, `:peer` prints to its group leader.
  @doc false
  def start_peer(options, device) do
    with {:ok, control} <- :peer.start_link(options) do
      true = Process.group_leader(control, device)
      {:ok, control}
    end
  end

  # nil if it has ended already, here and below.
  defp port(control) do
    with {:links, links} <- Process.info(control, :links), do: Enum.find(links, &is_port/1)
  end

  defp os_pid(port) do
    with {:os_pid, os_pid} <- Port.info(port, :os_pid), do: os_pid
  end

  defp read_boot_script(release) do
    name = System.get_env("RELEASE_BOOT_SCRIPT", "start")

    case File.read(Path.join([release.root, "releases", release.version, name <> ".boot"])) do
      {:ok, script} -> {:ok, script}
      {:error, reason} -> {:error, {:invalid_release, {:boot_script, reason}}}
    end
  end

  defp long_names?, do: :net_kernel.get_state().name_domain == :longnames

  # Where the ports of distribution are too few for a parent and two peers, peers only connect to others.
  defp listens? do
    lowest = Application.get_env(:kernel, :inet_dist_listen_min)
    highest = Application.get_env(:kernel, :inet_dist_listen_max, lowest)
    enough? = is_nil(lowest) or highest - lowest >= 2
    enough? and :init.get_argument(:erl_epmd_port) == :error
  end

  @doc "The name of the peer of a side: the parent's with the side, so that names are used again and again."
  @spec node_name(node(), :blue | :green, String.t() | nil) :: node()
  def node_name(parent, side, host) do
    [name, parent_host] = parent |> Atom.to_string() |> String.split("@", parts: 2)
    String.to_atom("#{name}_#{side}@#{host || parent_host}")
  end

  @doc "Waits until the peer has run its whole boot script, applications included."
  @spec await_started(t(), timeout()) :: :ok | {:error, {:boot_failed | :boot_timeout, map()}}
  def await_started(peer, timeout) do
    deadline = deadline(timeout)
    monitor = Process.monitor(peer.control)
    :ok = :net_kernel.monitor_nodes(true, @all_nodes)

    try do
      with :ok <- await_node(peer, monitor, deadline),
           do: peer |> ask_started() |> await_answer(peer, monitor, deadline)
    after
      :net_kernel.monitor_nodes(false, @all_nodes)
      Process.demonitor(monitor, [:flush])
    end
  end

  defp await_node(peer, monitor, deadline) do
    node = peer.node

    if node in Node.list(:connected) do
      :ok
    else
      receive do
        {:nodeup, ^node, _info} -> :ok
        {:DOWN, ^monitor, :process, _pid, _reason} -> {:error, {:boot_failed, details(peer)}}
      after
        remaining(deadline) -> {:error, {:boot_timeout, details(peer)}}
      end
    end
  end

  defp ask_started(peer), do: Task.async(__MODULE__, :call, [peer, :await_started, [], :infinity])

  defp await_answer(%Task{ref: ref} = task, peer, monitor, deadline) do
    receive do
      {^ref, {:ok, :ok}} ->
        Process.demonitor(ref, [:flush])
        :ok

      # The node went first; its end follows.
      {^ref, {:error, _noconnection}} ->
        Process.demonitor(ref, [:flush])
        await_end(peer, monitor, deadline)

      {:DOWN, ^monitor, :process, _pid, _reason} ->
        Task.shutdown(task, :brutal_kill)
        {:error, {:boot_failed, details(peer)}}
    after
      remaining(deadline) ->
        Task.shutdown(task, :brutal_kill)
        {:error, {:boot_timeout, details(peer)}}
    end
  end

  defp await_end(peer, monitor, deadline) do
    receive do
      {:DOWN, ^monitor, :process, _pid, _reason} -> {:error, {:boot_failed, details(peer)}}
    after
      remaining(deadline) -> {:error, {:boot_timeout, details(peer)}}
    end
  end

  @doc "What an error says of a peer that did not come up."
  @spec details(t()) :: map()
  def details(peer),
    do: %{version: peer.release.version, node: peer.node, output: Output.tail(peer.output)}

  @doc """
  The same of a peer to which the connection was lost: its node goes before it has printed why, so its end is waited for.
  """
  @spec details_at_end(t()) :: map()
  def details_at_end(peer) do
    monitor = Process.monitor(peer.control)

    receive do
      {:DOWN, ^monitor, :process, _pid, _reason} -> :ok
    after
      @kill_timeout -> Process.demonitor(monitor, [:flush])
    end

    details(peer)
  end

  @doc "Calls a function of `BeamDeploy.Remote` in the peer. An exception there is the answer here."
  @spec call(t(), atom(), [term()], timeout()) :: {:ok, term()} | {:error, term()}
  def call(%__MODULE__{node: node}, function, arguments, timeout) do
    {:ok, :erpc.call(node, Remote, function, arguments, timeout)}
  catch
    :error, {:erpc, reason} ->
      {:error, reason}

    :error, {:exception, reason, stack} ->
      {:error, {:exception, Exception.format(:error, reason, stack)}}

    :exit, {:exception, reason} ->
      {:error, {:exit, reason}}

    :throw, value ->
      {:error, {:throw, value}}
  end

  @doc "From now on the peer prints to the parent's own output."
  @spec attach_output(t()) :: :ok
  def attach_output(peer) do
    # Should the parent's output not be had, the peer goes on with the file.
    with {:ok, :ok} <- call(peer, :attach_output, [], 5_000), do: Output.finish_file(peer.output)
    :ok
  end

  @doc "The peer after a hot upgrade."
  @spec replace_release(t(), Release.t()) :: t()
  def replace_release(peer, release),
    do: %{peer | release: release, roots: [release.root | peer.roots]}

  @doc "The memory that the VM occupies, in bytes; nil where the system does not say."
  @spec memory(t()) :: non_neg_integer() | nil
  def memory(%__MODULE__{os_pid: os_pid}) do
    with {:ok, status} <- File.read("/proc/#{os_pid}/status"),
         [_, kilobytes] <- Regex.run(~r/^VmRSS:\s+(\d+) kB$/m, status) do
      String.to_integer(kilobytes) * 1024
    else
      _elsewhere_or_gone -> nil
    end
  end

  @doc "Whether the VM is there."
  @spec alive?(t()) :: boolean()
  def alive?(%__MODULE__{control: control}), do: Process.alive?(control)

  @doc "Stops the peer as `init:stop/0` does; past the timeout it is killed. Returns when it is gone."
  @spec stop(t(), timeout()) :: :stopped | :killed
  def stop(peer, timeout) do
    monitor = Process.monitor(peer.control)
    asked = call(peer, :stop, [], 5_000)

    receive do
      {:DOWN, ^monitor, :process, _pid, _reason} -> clean_up(peer, :stopped)
    after
      if(match?({:ok, :ok}, asked), do: timeout, else: 0) ->
        Process.demonitor(monitor, [:flush])
        kill(peer)
    end
  end

  @doc "Ends the peer at once. Returns when it is gone."
  @spec kill(t()) :: :killed
  def kill(peer) do
    monitor = Process.monitor(peer.control)
    # The port is open as long as the control process lives, so the number is still this peer's.
    if peer.os_pid && alive?(peer), do: Native.kill(peer.os_pid)

    receive do
      {:DOWN, ^monitor, :process, _pid, _reason} -> clean_up(peer, :killed)
    after
      @kill_timeout ->
        :ok = DynamicSupervisor.terminate_child(BeamDeploy.PeerSupervisor, peer.control)
        clean_up(peer, :killed)
    end
  end

  @doc "After a peer's end: what it printed last goes out, its files go."
  @spec clean_up(t(), result) :: result when result: term()
  def clean_up(peer, result) do
    finish_output(peer.output)
    Enum.each(peer.files, &File.rm/1)
    result
  end

  defp finish_output(output) do
    case DynamicSupervisor.terminate_child(BeamDeploy.PeerSupervisor, output) do
      :ok -> :ok
      {:error, :not_found} -> :ok
    end
  end

  defp deadline(:infinity), do: :infinity
  defp deadline(timeout), do: System.monotonic_time(:millisecond) + timeout

  defp remaining(:infinity), do: :infinity
  defp remaining(deadline), do: max(deadline - System.monotonic_time(:millisecond), 0)
end
