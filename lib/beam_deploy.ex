defmodule BeamDeploy do
  @moduledoc """
  Zero-downtime deploys on a single host.

  A long-lived **parent** node keeps running; the application runs in a **peer**, a child node. `upgrade/1` boots a
  second peer from a new release, hands all new connections over to it, lets the old one finish what it had accepted, and
  stops it.

  ## Use

      defmodule MyApp.Application do
        use Application

        def start(_type, _args) do
          children = [MyAppWeb.Endpoint]
          opts = [strategy: :one_for_one, name: MyApp.Supervisor]

          BeamDeploy.start_link(
            otp_app: :my_app,
            start: {Supervisor, :start_link, [children, opts]}
          )
        end
      end

  In the environment of the release:

  ```sh
  BEAM_DEPLOY=1
  ```

  A new version goes live with its tarball (`mix release` with the step `:tar`):

  ```sh
  bin/my_app rpc 'BeamDeploy.upgrade!("/tmp/my_app-0.2.0.tar.gz")'
  ```

  ## Lifecycle

  The parent ends when its peer keeps ending, so that systemd or the container runtime acts; peers end with the parent,
  however it ends. A swap that fails leaves the old peer serving as if nothing had happened.

  A parent that starts again, after a crash, a reboot or a restart of its service, serves the release that was deployed
  last. If that does not boot, the one that served before it is booted, then the base release: loudly, and for this start
  only. A new base release (a cold deploy) replaces what was deployed before.

  ## Events

  Where the `:telemetry` application runs, on the parent (hot upgrades: on the peer):

    * `[:beam_deploy, :swap, :start | :stop | :exception]`, with `:action` (`:upgrade`, `:rollback` or `:self_healing`) and
      `:from`; on stop `:to` and `:phases`, on exception `:reason`
    * `[:beam_deploy, :swap, :phase, :start | :stop | :exception]`, with `:phase`, and `:version` and `:node` once known
    * `[:beam_deploy, :hot_upgrade, :start | :stop | :exception]`, with `:otp_app`, on exception `:reason` as well; on stop
      `:version`, `:plan`, `:processes` (how many were suspended) and `:pause` (for how long, in native units)
    * `[:beam_deploy, :hot_upgrade, :phase, :start | :stop | :exception]`, with `:phase`, on exception `:reason`

  The measurements are `:system_time` on start and `:duration` (native units) otherwise. `subscribe/0` gives the same as
  messages.

  ## Environment

    * `BEAM_DEPLOY` - `1`, `true`, `yes` or `on` enables, `0`, `false`, `no` or `off` disables, whatever
      `config :beam_deploy, enabled: true` says
    * `BEAM_DEPLOY_DIR` - where releases are kept, by default `beam_deploy` in the release's directory
    * `BEAM_DEPLOY_PEER_HOST` - the host part of the peers' node names, by default the parent's
  """

  alias BeamDeploy.{Error, HotUpgrade, Options, Parent, PeerNode, Remote}
  alias BeamDeploy.BlueGreen.Coordinator
  alias BeamDeploy.PeerNode.{Drain, Servers}

  @typedoc """
  What `plan/2` finds: a struct with `:recommendation`, `:reasons`, and the lists of what differs. `inspect/1` shows it whole.
  """
  @type plan :: struct()

  @doc "See `start_link/2`; no parent-level children."
  @spec start_link(keyword()) :: Supervisor.on_start()
  def start_link(opts), do: start_link([], opts)

  @doc """
  Starts the application's supervision tree. To be called from `c:Application.start/2`, which returns its result.

  Where BeamDeploy is not enabled this calls the function of `:start` and returns its result. On the parent it starts
  `children`, which no swap restarts, and then boots the active peer; it returns when that peer serves. In a peer it starts
  the tree of `:start`, with endpoints that listen on the parent's sockets.

  ## Options

    * `:otp_app` (required) - the application
    * `:start` (required) - `{module, function, arguments}` that starts the supervision tree
    * `:endpoint` - a Phoenix endpoint or a list of them; by default `MyAppWeb.Endpoint`, if there is one
    * `:health_check` - called in a new peer before it gets any traffic; `:ok` or `true` passes, anything else is
      tried again until `:health_timeout`
    * `:before_cutover` - called in the outgoing peer, with the incoming node as first argument, after all user processes
      have ended; its result is the handoff state
    * `:after_cutover` - called in the incoming peer, with that state as first argument, once the outgoing one is gone and
      the new release is recorded as the current one. It should return soon: until it does `upgrade/2` does not, and
      another upgrade is refused. Past `:boot_timeout` it is waited for no longer
    * `:boot_timeout` - ms for a peer to start its applications (default 120000)
    * `:health_timeout` - ms for the health check to pass (default 30000)
    * `:drain_timeout` - ms for the outgoing peer to finish what it has accepted (default 60000)
    * `:shutdown_timeout` - ms after which an outgoing peer that was told to stop is killed; nil, the default, trusts the
      shutdown values of the supervision tree
    * `:dir` - where releases are kept; `BEAM_DEPLOY_DIR` otherwise
    * `:verify` - `{:ed25519, public_key}`: refuse tarballs that are not signed with its private key, see
      `mix beam_deploy.sign`; by default what `config :beam_deploy, verify: {:ed25519, public_key}` says
    * `:keep_releases` - how many releases to keep (default 3)
    * `:max_restarts`, `:max_seconds` - how often an active peer that ends by itself is booted again (default 3 times in
      60 s) before the parent ends. A release that ends twice within `:max_seconds` of taking over is rolled back, once

  The functions of `:health_check`, `:before_cutover` and `:after_cutover` are those of the release that runs them.

  ## Errors

  Raises `ArgumentError` for an unknown or ill-typed option, on a node without distribution, and outside of a release.
  Returns `{:error, reason}` if the first peer does not come up, so that the node stops.
  """
  @spec start_link([Supervisor.child_spec() | {module(), term()} | module()], keyword()) ::
          Supervisor.on_start()
  def start_link(children, opts) when is_list(children) do
    options = Options.new!(opts)

    cond do
      PeerNode.identity() -> PeerNode.start_app(options)
      enabled?() -> start_parent(children, options)
      true -> start_plain(options)
    end
  end

  defp start_parent(children, options) do
    with {:ok, environment} <- Parent.prepare(options),
         do: BeamDeploy.Supervisor.start_link(children, options, environment)
  end

  defp start_plain(%Options{start: {module, function, arguments}}),
    do: apply(module, function, arguments)

  @doc """
  Whether this node runs, or is to run, as parent or peer: `BEAM_DEPLOY` decides, else `config :beam_deploy, enabled: true`.

      iex> BeamDeploy.enabled?()
      false
  """
  @spec enabled?() :: boolean()
  def enabled? do
    case System.get_env("BEAM_DEPLOY", "") |> String.downcase() do
      on when on in ["1", "true", "yes", "on"] ->
        true

      off when off in ["0", "false", "no", "off"] ->
        false

      "" ->
        Application.get_env(:beam_deploy, :enabled, false) == true

      other ->
        raise ArgumentError,
              "BEAM_DEPLOY takes 1, true, yes, on, 0, false, no or off, got: #{inspect(other)}"
    end
  end

  @doc """
  Swaps the running version for that of a release tarball: a new peer is booted from it, gets all new connections once it
  is healthy, and the old one is stopped when it has finished what it had accepted.

  Returns `:ok` when the new version serves and the old peer is gone. Called in the old peer, it returns when the new
  version serves, so that a request which asks for a swap can be answered.

  While the first peer is being booted, or one that ended by itself is booted again, an upgrade, hot upgrade or rollback
  waits for that; one that is asked for besides gets `:upgrade_in_progress`. If the release that keeps ending does not come up
  again, the one that was asked for is booted in its place. A release that is rolled back by itself is so before.

  ## Options

    * `:sha256` - the expected digest of the tarball, 64 hexadecimal digits

  ## Errors

  Up to the cutover any failure leaves the old peer serving, and nothing behind.

    * `:not_running` - there is no parent here
    * `:upgrade_in_progress` - one at a time
    * `:no_active_peer` - asked for by the peer that is being booted
    * `{:peer_boot_failed, reason}` - the peer that was being booted did not come up, and the parent ends
    * `:release_not_found`, `{:unreadable, posix}`
    * `{:extract_failed, message | posix}` - not gzip, truncated, damaged, disk full
    * `{:unsafe_archive, entry, why}` - an entry that would leave its directory, a device, too much
    * `{:checksum_mismatch, expected, actual}`
    * `{:unsigned, path}`, `{:bad_signature, path}` - where a key is trusted, see `:verify` of `start_link/2`
    * `{:invalid_release, why}` - no release, or of another application
    * `{:incompatible_release, details}` - for another OTP without its own runtime, another CPU or libc
    * `{:boot_failed, details}`, `{:boot_timeout, details}`, `{:health_check_failed, details}` - `details.output` holds
      the last lines that the new peer printed
    * `{:cutover_failed, reason}` - the system refused to send connections to it
    * `{:crashed, reason}` - a defect of BeamDeploy
  """
  @spec upgrade(Path.t(), keyword()) :: :ok | {:error, Error.reason()}
  def upgrade(path, opts \\ []) when is_binary(path) do
    on_parent(
      :upgrade,
      [Path.expand(path), Options.upgrade!(opts), caller()],
      {:error, :not_running}
    )
  end

  @doc """
  As `upgrade/2`, but raises `BeamDeploy.Error`: `bin/my_app rpc` then exits with a status other than 0.
  """
  @spec upgrade!(Path.t(), keyword()) :: :ok
  def upgrade!(path, opts \\ []) when is_binary(path) do
    with {:error, reason} <- upgrade(path, opts), do: raise(Error, reason: reason)
  end

  @doc """
  Replaces changed modules inside the running node, keeping the states of processes: suspend, load, `code_change/3`, resume.
  All or nothing: on any failure code, states and files are as before, and every process runs.

  In parent/peer mode it is carried out in the active peer, from wherever it is called. Elsewhere it is carried out in this
  node, which has to be a release; the release on disk is upgraded as well, for the next start.

  ## Options

    * `:otp_app` (required) - the application
    * `:suspend_timeout` - ms within which all affected processes have to be suspended (default 3000)
    * `:code_change_timeout` - ms that a process has for its `code_change/3` (default 5000)
    * `:force` - go on where `plan/2` recommends something else, and kill processes that still run old code
    * `:config` - bring the applications' environments up to date and call `c:Application.config_change/3`
    * `:supervisors` - start children that supervisors have gained, stop those that they have lost
    * `:sha256` - the expected digest of the tarball, 64 hexadecimal digits
    * `:verify` - `{:ed25519, public_key}`: refuse a tarball that is not signed with its private key; by default what
      `config :beam_deploy, verify: {:ed25519, public_key}` says. In parent/peer mode the parent's key has to be satisfied
      as well. What is loaded is what was checked, even if the file is exchanged meanwhile

  ## Errors

  Those of `upgrade/2` about the tarball, and

    * `:nothing_changed` - the tarball holds what runs
    * `:no_active_peer` - the peer ended while it was upgraded, and is booted again with the release that it had
    * `:upgrade_in_progress`
    * `{:not_hot, recommendation, reasons}` - see `plan/2`
    * `{:old_code_in_use, pids}` - processes still run code from before an earlier upgrade
    * `{:old_code_unavailable, modules}` - what is loaded cannot be found on disk, so it could not be put back
    * `{:suspend_failed, pids}` - processes that were too busy, or began while the code was loaded
    * `{:load_failed, modules}`, `{:code_path, reason}` - the VM refused them
    * `{:code_change_failed, details}`
    * `{:config_failed, reason}` - with `:config`: the new configuration cannot be evaluated here
    * `{:not_recorded, posix}` - the release on disk could not be marked as upgraded
  """
  @spec hot_upgrade(Path.t(), keyword()) :: :ok | {:error, Error.reason()}
  def hot_upgrade(path, opts) when is_binary(path) do
    path = Path.expand(path)
    _checked = HotUpgrade.Options.hot_upgrade!(opts)

    if parent_or_peer?(),
      do: on_parent(:hot_upgrade, [path, opts, caller()], {:error, :not_running}),
      else: HotUpgrade.run(path, opts)
  end

  @doc "As `hot_upgrade/2`, but raises `BeamDeploy.Error`."
  @spec hot_upgrade!(Path.t(), keyword()) :: :ok
  def hot_upgrade!(path, opts) when is_binary(path) do
    with {:error, reason} <- hot_upgrade(path, opts), do: raise(Error, reason: reason)
  end

  @doc """
  What an upgrade to a tarball would change, and how it had better be done, with reasons: `:hot`, `:blue_green` or `:cold`.
  Reads the tarball once, without extracting it, and changes nothing. On the parent it is the active peer that the tarball
  is compared with.

  ## Options

    * `:otp_app` - refuse a release of another application
    * `:against` - another tarball to compare with, instead of this node: needs no running release
    * `:config`, `:supervisors`, `:sha256`, `:verify` - as for `hot_upgrade/2`

  ## Errors

  Those of `upgrade/2` about the tarball, and on the parent `:no_active_peer`: none serves at the moment, or it ended
  meanwhile.
  """
  @spec plan(Path.t(), keyword()) :: {:ok, plan()} | {:error, Error.reason()}
  def plan(path, opts \\ []) when is_binary(path) do
    path = Path.expand(path)
    _checked = HotUpgrade.Options.plan!(opts)

    if Keyword.has_key?(opts, :against) or not parent?(),
      do: HotUpgrade.plan(path, opts),
      else: Coordinator.plan(path, opts)
  end

  @doc """
  Swaps back to the release that served before the current one, which is kept in the store. Rolling back twice is going
  forward again. The phases are those of `upgrade/2`; nothing is extracted.

  ## Errors

  Those of `upgrade/2` from the boot on, and

    * `:no_previous_release`
    * `{:damaged_release, version}` - files of it are missing by now
  """
  @spec rollback() :: :ok | {:error, Error.reason()}
  def rollback, do: on_parent(:rollback, [nil, caller()], {:error, :not_running})

  @doc """
  Swaps to a release of the store, by its version: see `info/0` for those that are there. Of several with one version it is
  the newest that does not serve already.

  Errors as `rollback/0`, and `{:unknown_release, version}`, `{:already_current, version}`.
  """
  @spec rollback(String.t()) :: :ok | {:error, Error.reason()}
  def rollback(version) when is_binary(version),
    do: on_parent(:rollback, [version, caller()], {:error, :not_running})

  @doc "As `rollback/0`, but raises `BeamDeploy.Error`."
  @spec rollback!() :: :ok
  def rollback! do
    with {:error, reason} <- rollback(), do: raise(Error, reason: reason)
  end

  @doc "As `rollback/1`, but raises `BeamDeploy.Error`."
  @spec rollback!(String.t()) :: :ok
  def rollback!(version) do
    with {:error, reason} <- rollback(version), do: raise(Error, reason: reason)
  end

  @doc """
  What was tried on this host, newest first, at most 100 entries: `:at` (`DateTime`), `:kind` (`:blue_green`, `:hot`,
  `:rollback`, or `:boot` for what happened without being asked for), `:from` and `:to` (`{version, sha256}`, nil where
  unknown), `:outcome` (`:ok` or `{:error, sentence}`). Kept through restarts.
  """
  @spec history() :: [map()]
  def history, do: on_parent(:history, [], [])

  @doc "The version that serves, nil where there is no parent or no peer serves."
  @spec current_vsn() :: String.t() | nil
  def current_vsn, do: on_parent(:current_vsn, [], nil)

  @doc """
  From now on the calling process gets `{:beam_deploy, event, metadata}` of every swap and hot upgrade, until it ends. Works
  on the parent and on its peers. A peer ends with the swap that replaces it, and its subscriptions with it.

  `event` is that of telemetry (see the module documentation) without the leading `:beam_deploy`, such as
  `[:swap, :phase, :stop]`; a duration is `:duration_ms` of the metadata.
  """
  @spec subscribe() :: :ok | {:error, :not_running}
  def subscribe, do: on_parent(:subscribe, [self()], {:error, :not_running})

  @doc """
  The node that serves, and whether an upgrade is under way. Answers at once at any moment.

      iex> BeamDeploy.status()
      %{active_node: nil, upgrading: false}
  """
  @spec status() :: %{active_node: node() | nil, upgrading: boolean()}
  def status, do: on_parent(:status, [], %{active_node: nil, upgrading: false})

  @doc """
  Everything an operator wants to know: `status/0`, versions, peers with their OS pids and memory in bytes, listeners and
  how they are handed over, the store's directory, size and releases, the phases of the last swap in milliseconds, how often
  peers have ended by themselves. Empty where there is no parent.
  """
  @spec info() :: map()
  def info, do: on_parent(:info, [], %{})

  @doc "The node that serves, nil where there is none."
  @spec peer_node() :: node() | nil
  def peer_node, do: status().active_node

  @doc "Whether a swap or hot upgrade is under way, or waits for a peer that is being booted: another would be refused."
  @spec upgrading?() :: boolean()
  def upgrading?, do: status().upgrading

  @doc "In the outgoing peer of a swap: the node that takes over."
  @spec incoming_peer() :: node() | nil
  def incoming_peer, do: counterpart(:incoming)

  @doc "In the incoming peer of a swap: the node that it replaces, until that is gone."
  @spec outgoing_peer() :: node() | nil
  def outgoing_peer, do: counterpart(:outgoing)

  defp counterpart(role) do
    case PeerNode.identity() do
      nil -> nil
      identity -> Map.fetch!(identity, role)
    end
  end

  @doc """
  Keeps a value on the parent for the version that comes next. Works in `terminate/2` while a peer shuts down. All
  values are cleared when a swap starts. Does nothing outside of parent/peer mode.
  """
  @spec put_handoff(term(), term()) :: :ok
  def put_handoff(key, value), do: on_parent(:put_handoff, [key, value], :ok)

  @doc "A value that `put_handoff/2` kept, or nil."
  @spec get_handoff(term()) :: term() | nil
  def get_handoff(key), do: on_parent(:get_handoff, [key], nil)

  @doc "All values that `put_handoff/2` kept."
  @spec get_all_handoff() :: map()
  def get_all_handoff, do: on_parent(:get_all_handoff, [], %{})

  @doc """
  As `:gen_tcp.listen/2`, for a listener of your own that takes part in swaps: in a peer the socket is the parent's, and
  new connections reach it only while this peer is the one that serves. Elsewhere, and for port 0, it is
  `:gen_tcp.listen/2`. Unix-domain sockets take part as well (`ip: {:local, path}` and port 0); BeamDeploy keeps two more
  names beside the path.

      {:ok, socket} = BeamDeploy.listen(4040, [:binary, active: false, ip: {127, 0, 0, 1}])

  How to end its connections without losing a request: see `draining?/0`.
  """
  @spec listen(:inet.port_number(), [:gen_tcp.listen_option()]) ::
          {:ok, :gen_tcp.socket()} | {:error, term()}
  def listen(port, opts) when is_integer(port) and is_list(opts) do
    if PeerNode.identity(),
      do: Servers.listen(port, opts),
      else: :gen_tcp.listen(port, opts)
  end

  @doc """
  Options for a server that you start in your own supervision tree, without Phoenix: in a peer it listens on the parent's
  socket and takes part in swaps. Elsewhere they are returned as they are.

      children = [
        {Bandit, BeamDeploy.server_options(Bandit, plug: MyApp.Router, port: 4000)},
        {Plug.Cowboy,
         BeamDeploy.server_options(Plug.Cowboy,
           scheme: :http,
           plug: MyApp.Admin,
           options: [port: 4001]
         )}
      ]

  Takes `Bandit`, `ThousandIsland` and `Plug.Cowboy` with what their child specifications take, and `:ranch` with
  the transport options of `:ranch.child_spec/5` or `:cowboy.start_clear/3`. Endpoints of Phoenix need none of this: see
  the option `:endpoint` of `start_link/2`.

  Raises `BeamDeploy.Error` if the parent cannot listen there.
  """
  @spec server_options(module(), options) :: options when options: term()
  def server_options(server, options)
      when server in [Bandit, ThousandIsland, Plug.Cowboy, :ranch] do
    with true <- PeerNode.identity() != nil,
         {:ok, adopted} <- Servers.options(server, options) do
      adopted
    else
      false -> options
      {:error, reason} -> raise(Error, reason: {:listen_failed, server, reason})
    end
  end

  @doc """
  Whether this node has been told to finish what it has accepted, because another version serves. True from shortly after
  the cutover until the node stops; false on any other node.

  Servers that BeamDeploy knows (Bandit, Cowboy) need nothing: their connections end in order, WebSockets last. A
  server of your own, on a socket of `listen/2`, should close each connection after the answer it is giving, and say so if
  its protocol can; one that waits for its next request should be closed once it has been idle for a moment. The old
  peer is stopped when all connections of such a socket have ended, after `:drain_timeout` at the latest. When the
  supervision tree stops, the process of a connection is told to shut down like any other: trap exits and finish then.
  """
  @spec draining?() :: boolean()
  defdelegate draining?, to: Drain

  # Who calls through `bin/NAME rpc` or a remote shell has the terminal on that other node.
  defp caller do
    leader = Process.group_leader()
    %{node: node(), terminal: if(node(leader) != node(), do: leader)}
  end

  defp parent_or_peer?, do: PeerNode.identity() != nil or parent?()
  defp parent?, do: Process.whereis(Coordinator) != nil

  # Where this node belongs to no parent, the default is the answer.
  defp on_parent(function, arguments, default) do
    case PeerNode.identity() do
      nil ->
        if Process.whereis(Coordinator), do: apply(Remote, function, arguments), else: default

      %{parent: parent} ->
        call_parent(parent, function, arguments, default)
    end
  end

  defp call_parent(parent, function, arguments, default) do
    :erpc.call(parent, Remote, function, arguments)
  catch
    # The parent is gone, and this peer about to be.
    :error, {:erpc, :noconnection} -> default
  end
end
