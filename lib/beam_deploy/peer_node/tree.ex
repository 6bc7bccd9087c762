defmodule BeamDeploy.PeerNode.Tree do
  @moduledoc false
  # Responsible for: the user's supervision tree in a peer, with the sentinel that outlives it.
  # Not for: restarting it: that it ends means that the peer ends, and the parent boots another.

  use Supervisor

  alias BeamDeploy.PeerNode.Sentinel

  def start_link(options), do: Supervisor.start_link(__MODULE__, options)

  @impl true
  def init(options) do
    children = [
      # First to start, so the last to stop: its end is the end of all user processes.
      Sentinel,
      %{id: options.otp_app, start: options.start, type: :supervisor, shutdown: :infinity}
    ]

    Supervisor.init(children, strategy: :one_for_all, max_restarts: 0)
  end
end
