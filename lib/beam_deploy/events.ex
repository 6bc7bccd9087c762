defmodule BeamDeploy.Events do
  @moduledoc false
  # Responsible for: telling the world of swaps, hot upgrades and their phases: log, telemetry, subscribers, the terminal
  # of whoever asked.
  # Not for: what the phases do.

  require Logger

  @type kind :: :swap | :hot_upgrade

  @doc """
  Runs one phase: times it, logs it, emits its telemetry events. The function's result is the answer; `{:error, _}` counts
  as failed.
  """
  @spec span(kind(), atom(), map(), (() -> result)) :: result when result: term()
  def span(kind, phase, metadata, function) do
    metadata = Map.put(metadata, :phase, phase)
    started = System.monotonic_time()
    telemetry([kind, :phase, :start], %{system_time: System.system_time()}, metadata)
    result = function.()
    finish(kind, metadata, System.monotonic_time() - started, result)
    result
  end

  @doc """
  Tells of a phase that was timed elsewhere: while the processes of a hot upgrade are suspended, among them perhaps the
  logger's, nothing is told.
  """
  @spec told(kind(), atom(), map(), integer(), term()) :: :ok
  def told(kind, phase, metadata, duration, result) do
    metadata = Map.put(metadata, :phase, phase)
    telemetry([kind, :phase, :start], %{system_time: System.system_time()}, metadata)
    finish(kind, metadata, duration, result)
    :ok
  end

  @doc "What the phases of this process's current swap took so far, in milliseconds, oldest first."
  @spec timings() :: [{atom(), float()}]
  def timings, do: Enum.reverse(Process.get(__MODULE__, []))

  @doc "Emits one event that has no duration."
  @spec notify(kind(), atom(), map()) :: :ok
  def notify(kind, event, metadata),
    do: telemetry([kind, event], %{system_time: System.system_time()}, metadata)

  defp finish(kind, metadata, duration, result) do
    milliseconds = Float.round(duration / System.convert_time_unit(1, :second, :native) * 1000, 1)
    Process.put(__MODULE__, [{metadata.phase, milliseconds} | Process.get(__MODULE__, [])])

    case result do
      {:error, reason} ->
        Logger.error(
          "beam_deploy: #{label(kind)} #{describe(metadata)} failed after #{milliseconds} ms: " <>
            inspect(reason)
        )

        telemetry(
          [kind, :phase, :exception],
          %{duration: duration},
          Map.put(metadata, :reason, reason)
        )

      _done ->
        Logger.info("beam_deploy: #{label(kind)} #{describe(metadata)} #{milliseconds} ms")
        telemetry([kind, :phase, :stop], %{duration: duration}, metadata)
    end
  end

  defp label(:swap), do: "swap"
  defp label(:hot_upgrade), do: "hot upgrade"

  defp describe(%{phase: phase} = metadata) do
    details = for key <- [:version, :node], value = metadata[key], do: "#{key}=#{value}"
    Enum.join([phase | details], " ")
  end

  # The :telemetry application is used where it is there, and asked for nowhere.
  defp telemetry(event, measurements, metadata) do
    if Code.ensure_loaded?(:telemetry),
      do: apply(:telemetry, :execute, [[:beam_deploy | event], measurements, metadata]),
      else: :ok
  end
end
