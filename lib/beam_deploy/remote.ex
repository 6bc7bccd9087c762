defmodule BeamDeploy.Remote do
  @moduledoc false
  # Everything that crosses between parent and peers: named functions with plain terms, and nothing else. Parent and peer
  # may run different versions of BeamDeploy, so a function here changes neither its arguments nor its answers; what must
  # change gets a new name, and `version/0` grows.

  alias BeamDeploy.BlueGreen.{Coordinator, Handoff}
  alias BeamDeploy.{HotUpgrade, PeerNode}
  alias BeamDeploy.Events.Subscribers
  alias BeamDeploy.PeerNode.{Console, Drain, Preload}

  # 2: release_roots/0.
  @version 2

  @doc "The version of this protocol, on either side."
  @spec version() :: pos_integer()
  def version, do: @version

  # In a peer, called by the parent.

  @spec await_started() :: :ok
  def await_started, do: Console.await_started()

  @spec attach_output() :: :ok | {:error, term()}
  def attach_output, do: Console.attach()

  @spec load_modules() :: :ok
  def load_modules, do: Preload.load_all()

  @spec startup_modules() :: binary()
  def startup_modules, do: Preload.startup_modules()

  @spec put_counterpart(:incoming | :outgoing, node() | nil) :: :ok
  def put_counterpart(role, node), do: PeerNode.put_counterpart(role, node)

  # Each release has its own hooks: those that its peer was started with. An exception in one is the caller's.

  @spec check_health() :: term()
  def check_health, do: at_home(fn -> PeerNode.run_hook(:health_check, [], :ok) end)

  @spec after_cutover(term()) :: term()
  def after_cutover(state), do: at_home(fn -> PeerNode.run_hook(:after_cutover, [state], :ok) end)

  @spec hot_upgrade_here(Path.t(), keyword()) :: :ok | {:error, term()}
  def hot_upgrade_here(path, options), do: at_home(fn -> HotUpgrade.run(path, options) end)

  @spec plan_here(Path.t(), keyword()) :: {:ok, HotUpgrade.Plan.t()} | {:error, term()}
  def plan_here(path, options), do: HotUpgrade.plan(path, options)

  @doc "Ends all connections in order, those that are left after the timeout otherwise. Returns when none is left."
  @spec drain(timeout()) :: %{ended: non_neg_integer(), cut: non_neg_integer()}
  def drain(timeout), do: at_home(fn -> Drain.run(timeout) end)

  @spec stop() :: :ok
  def stop, do: :init.stop()

  # A call from another node brings that node's group leader along: what is printed would appear there, and what is logged
  # both there and here.
  defp at_home(function) do
    true = Process.group_leader(self(), Process.whereis(:user))
    function.()
  end

  # On the parent, called by peers.

  @spec upgrade(Path.t(), keyword(), Coordinator.caller()) :: :ok | {:error, term()}
  def upgrade(path, options, caller), do: Coordinator.upgrade(path, options, caller)

  @spec hot_upgrade(Path.t(), keyword(), Coordinator.caller()) :: :ok | {:error, term()}
  def hot_upgrade(path, options, caller), do: Coordinator.hot_upgrade(path, options, caller)

  @spec rollback(String.t() | nil, Coordinator.caller()) :: :ok | {:error, term()}
  def rollback(version, caller), do: Coordinator.rollback(version, caller)

  @spec history() :: [map()]
  def history, do: Coordinator.history()

  @spec current_vsn() :: String.t() | nil
  def current_vsn, do: Coordinator.current_vsn()

  @spec subscribe(pid()) :: :ok
  def subscribe(pid), do: Subscribers.add(pid)

  @spec publish([atom()], map()) :: :ok
  def publish(event, metadata), do: Subscribers.publish_here(event, metadata)

  @spec status() :: %{active_node: node() | nil, upgrading: boolean()}
  def status, do: Coordinator.status()

  @spec info() :: map()
  def info, do: Coordinator.info()

  @spec release_roots() :: [Path.t()]
  def release_roots, do: Coordinator.release_roots()

  @spec put_cutover_state(term()) :: :ok
  def put_cutover_state(state), do: Coordinator.put_cutover_state(state)

  @spec put_handoff(term(), term()) :: :ok
  def put_handoff(key, value), do: Handoff.put(key, value)

  @spec get_handoff(term()) :: term() | nil
  def get_handoff(key), do: Handoff.get(key)

  @spec get_all_handoff() :: map()
  def get_all_handoff, do: Handoff.all()
end
