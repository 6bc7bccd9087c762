defmodule BeamDeploy.Supervisor do
  @moduledoc false
  # Responsible for: the parent's tree.
  # Not for: anything in a peer.
  #
  # No restarts here: the listening sockets, the peers and what is known of them belong together, and a parent that lost
  # one of them is best replaced as a whole, by systemd or the container runtime. Peers have their own intensity, in the
  # coordinator. The user's parent-level children restart under a supervisor of their own.

  use Supervisor

  alias BeamDeploy.BlueGreen.{Coordinator, DescriptorServer, Handoff, Listener}
  alias BeamDeploy.Events.Subscribers
  alias BeamDeploy.Options

  @spec start_link([term()], Options.t(), map()) :: Supervisor.on_start()
  def start_link(children, %Options{} = options, environment),
    do: Supervisor.start_link(__MODULE__, {children, options, environment}, name: __MODULE__)

  @impl true
  def init({children, options, environment}) do
    children = [
      # The user's come first, so that a peer can rely on them from its first moment to its last.
      %{
        id: :children,
        start: {Supervisor, :start_link, [children, [strategy: :one_for_one]]},
        type: :supervisor
      },
      Handoff,
      Subscribers,
      {Task.Supervisor, name: BeamDeploy.TaskSupervisor},
      {Listener, mode: environment.listeners},
      {DescriptorServer, environment.socket},
      # Peers end with it, whatever happened to the coordinator.
      {DynamicSupervisor, name: BeamDeploy.PeerSupervisor, max_restarts: 0},
      {Coordinator, {options, environment}},
      # Starting is over when the first peer serves.
      %{id: :await_active, start: {Coordinator, :await_active, []}, restart: :temporary}
    ]

    Supervisor.init(children, strategy: :one_for_all, max_restarts: 0)
  end
end
