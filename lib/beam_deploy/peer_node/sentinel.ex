defmodule BeamDeploy.PeerNode.Sentinel do
  @moduledoc false
  # Responsible for: `before_cutover`, after the last user process of an outgoing peer has ended.
  # Not for: what its result means; the parent keeps it for `after_cutover`.

  use GenServer, shutdown: :infinity

  alias BeamDeploy.{PeerNode, Remote}

  require Logger

  def start_link(_options), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  @impl true
  def init([]) do
    Process.flag(:trap_exit, true)
    {:ok, nil}
  end

  @impl true
  def terminate(_reason, nil) do
    case PeerNode.identity() do
      # No swap: the whole system stops.
      %{incoming: nil} ->
        :ok

      %{incoming: incoming, parent: parent} ->
        state = PeerNode.run_hook(:before_cutover, [incoming], nil)
        :erpc.call(parent, Remote, :put_cutover_state, [state])
    end
  catch
    kind, reason ->
      Logger.error(
        "beam_deploy: before_cutover failed: " <> Exception.format(kind, reason, __STACKTRACE__)
      )
  end
end
