defmodule BeamDeploy.Events.Terminal do
  @moduledoc false
  # Responsible for: the progress of an upgrade on the terminal of whoever asked for it.
  # Not for: the upgrade, which neither waits for the terminal nor ends with it.

  alias BeamDeploy.{Error, Events}
  alias BeamDeploy.Events.Subscribers

  # A terminal that is held (Ctrl-S) keeps its user from the answer no longer than this.
  @last_lines 2_000

  @doc "Starts to print what happens to the device, which may be on any node."
  @spec start(pid()) :: pid()
  def start(device) do
    {:ok, terminal} =
      Task.Supervisor.start_child(BeamDeploy.TaskSupervisor, __MODULE__, :run, [device])

    :ok = Subscribers.add(terminal)
    terminal
  end

  @doc "Prints a line of another kind."
  @spec say(pid(), String.t()) :: :ok
  def say(terminal, line) do
    send(terminal, {:say, line})
    :ok
  end

  @doc "Answers a call once everything is printed: `bin/NAME rpc` ends with it, and its terminal too."
  @spec answer(pid(), GenServer.from(), term()) :: :ok
  def answer(terminal, from, answer) do
    monitor = Process.monitor(terminal)
    send(terminal, :finish)

    receive do
      {:DOWN, ^monitor, :process, _pid, _reason} -> :ok
    after
      @last_lines -> Process.exit(terminal, :kill)
    end

    GenServer.reply(from, answer)
  end

  @doc false
  def run(device) do
    receive do
      {:beam_deploy, event, metadata} ->
        with :ok <- print(device, line(event, metadata)), do: run(device)

      {:say, line} ->
        with :ok <- print(device, line), do: run(device)

      :finish ->
        :ok
    end
  end

  defp print(_device, nil), do: :ok

  # Not `IO.puts/2`, which raises when the device is gone.
  defp print(device, line) do
    with {:error, _gone} <- :io.request(device, {:put_chars, :unicode, [line, ?\n]}), do: :gone
  end

  @doc "What is printed of an event, nil where that is nothing."
  @spec line([atom()], map()) :: iodata() | nil
  def line([_kind, :phase, :stop], metadata),
    do: [column(metadata.phase), duration(metadata), where(metadata)]

  def line([_kind, :phase, :exception], metadata),
    do: [column(metadata.phase), duration(metadata), " failed: ", Error.sentence(metadata.reason)]

  def line([kind, :stop], metadata),
    do: [column(label(kind)), duration(metadata), arrow(metadata)]

  def line(_event, _metadata), do: nil

  defp column(name), do: name |> to_string() |> String.pad_trailing(12)

  defp duration(%{duration_ms: milliseconds}) do
    [milliseconds |> Events.text() |> String.pad_leading(9), " ms"]
  end

  defp duration(_metadata), do: ""

  defp where(metadata),
    do: for(key <- [:version, :node], value = metadata[key], do: "  #{key}=#{value}")

  defp arrow(%{from: from, to: to}) when is_binary(from) and is_binary(to),
    do: "  #{from} -> #{to}"

  defp arrow(%{version: version}), do: "  version=#{version}"
  defp arrow(_metadata), do: ""

  defp label(:swap), do: "done"
  defp label(:hot_upgrade), do: "done"
end
