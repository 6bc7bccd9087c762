defmodule Example.Progress do
  @moduledoc """
  Tells the deployer which phase is under way. The phases of a swap pass on the parent, those of a hot upgrade in the peer.
  """

  @events for kind <- [:swap, :hot_upgrade],
              event <- [:start, :stop, :exception],
              do: [:beam_deploy, kind, :phase, event]

  def attach(deployer_node) do
    case :telemetry.attach_many(__MODULE__, @events, &__MODULE__.handle_event/4, deployer_node) do
      :ok -> :ok
      {:error, :already_exists} -> :ok
    end
  end

  @doc false
  def handle_event([:beam_deploy, _kind, :phase, event], measurements, metadata, deployer_node) do
    GenServer.cast(
      {Example.Deployer, deployer_node},
      {:phase, metadata.phase, event, milliseconds(measurements)}
    )
  end

  defp milliseconds(%{duration: duration}),
    do: System.convert_time_unit(duration, :native, :millisecond)

  defp milliseconds(_start), do: nil
end
