defmodule BeamDeploy.Events do
  @moduledoc false
  # Responsible for: telling the world of swaps, hot upgrades and their phases: log, telemetry, subscribers and, as one of
  # them, the terminal of whoever asked.
  # Not for: what the phases do.

  alias BeamDeploy.Error
  alias BeamDeploy.Events.Subscribers

  require Logger

  @type kind :: :swap | :hot_upgrade

  # What subscribers get of an event's metadata: plain terms, on any node.
  @told [:action, :from, :to, :version, :node, :phase, :reason, :otp_app, :pause, :processes]

  @doc """
  Runs a whole swap and emits its `:start` and `:stop` or `:exception`. What the function answers as `{:ok, summary}` is in
  the metadata of `:stop`.
  """
  @spec run(kind(), map(), (... -> result)) :: result when result: {:ok, map()} | {:error, term()}
  def run(kind, metadata, function) do
    Process.delete(__MODULE__)
    started = System.monotonic_time()
    emit([kind, :start], %{system_time: System.system_time()}, metadata)

    try do
      function.()
    catch
      class, reason ->
        failed(kind, started, metadata, {:crashed, reason})
        :erlang.raise(class, reason, __STACKTRACE__)
    else
      {:ok, summary} ->
        duration = System.monotonic_time() - started
        emit([kind, :stop], %{duration: duration}, Map.merge(metadata, summary))
        {:ok, summary}

      {:error, reason} ->
        failed(kind, started, metadata, reason)
        {:error, reason}
    end
  end

  defp failed(kind, started, metadata, reason) do
    duration = System.monotonic_time() - started
    emit([kind, :exception], %{duration: duration}, Map.put(metadata, :reason, reason))
  end

  @doc """
  Runs one phase: times it, logs it, emits its events. The function's result is the answer; `{:error, _}` counts as failed.
  """
  @spec span(kind(), atom(), map(), (... -> result)) :: result when result: term()
  def span(kind, phase, metadata, function) do
    metadata = Map.put(metadata, :phase, phase)
    started = System.monotonic_time()
    emit([kind, :phase, :start], %{system_time: System.system_time()}, metadata)
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
    emit([kind, :phase, :start], %{system_time: System.system_time()}, metadata)
    finish(kind, metadata, duration, result)
    :ok
  end

  @doc "What the phases of this process's current swap took so far, in milliseconds, oldest first."
  @spec timings() :: [{atom(), float()}]
  def timings, do: Enum.reverse(Process.get(__MODULE__, []))

  @doc "Emits one event. A duration among the metadata is a measurement."
  @spec notify(kind(), atom(), map()) :: :ok
  def notify(kind, event, metadata) do
    {measurements, metadata} = Map.split(metadata, [:duration])
    emit([kind, event], Map.put(measurements, :system_time, System.system_time()), metadata)
  end

  defp finish(kind, metadata, duration, result) do
    milliseconds = milliseconds(duration)
    Process.put(__MODULE__, [{metadata.phase, milliseconds} | Process.get(__MODULE__, [])])

    case result do
      # The sentence only: what a peer printed is in the log already.
      {:error, reason} ->
        Logger.error(
          "beam_deploy: #{label(kind)} #{describe(metadata)} failed after #{text(milliseconds)} ms: " <>
            Error.sentence(reason)
        )

        emit(
          [kind, :phase, :exception],
          %{duration: duration},
          Map.put(metadata, :reason, reason)
        )

      _done ->
        Logger.info("beam_deploy: #{label(kind)} #{describe(metadata)} #{text(milliseconds)} ms")
        emit([kind, :phase, :stop], %{duration: duration}, metadata)
    end
  end

  defp label(:swap), do: "swap"
  defp label(:hot_upgrade), do: "hot upgrade"

  defp describe(%{phase: phase} = metadata) do
    details = for key <- [:version, :node], value = metadata[key], do: "#{key}=#{value}"
    Enum.join([phase | details], " ")
  end

  defp emit(event, measurements, metadata) do
    telemetry(event, measurements, metadata)
    Subscribers.publish(event, metadata |> Map.take(@told) |> put_duration(measurements))
  end

  defp put_duration(metadata, %{duration: duration}),
    do: Map.put(metadata, :duration_ms, milliseconds(duration))

  defp put_duration(metadata, _measurements), do: metadata

  @doc "A duration in native units as milliseconds, with one decimal."
  @spec milliseconds(integer()) :: float()
  def milliseconds(duration),
    do: Float.round(duration / System.convert_time_unit(1, :second, :native) * 1000, 1)

  @doc "The same to be printed. Newer versions of Elixir would make `1.7e3` of some."
  @spec text(number()) :: String.t()
  def text(milliseconds), do: :erlang.float_to_binary(milliseconds * 1.0, decimals: 1)

  # The :telemetry application is used where it is there, and asked for nowhere.
  defp telemetry(event, measurements, metadata) do
    if Code.ensure_loaded?(:telemetry),
      do: apply(:telemetry, :execute, [[:beam_deploy | event], measurements, metadata]),
      else: :ok
  end
end
