defmodule BeamDeploy.HotUpgrade.SystemMessages do
  @moduledoc false
  # Responsible for: asking many processes at once in the protocol of `:sys`, and collecting the answers to a deadline.
  # Not for: what they are asked.
  #
  # `:sys` has one call a process, each waited for before the next: at 10,000 processes that takes ten times longer
  # than sending all messages first. The messages are those of sys:handle_system_msg/6; the tag with an alias and a
  # label is that of `:gen` since OTP 24.

  @typedoc "Processes by their monitors, which are aliases for their answers as well."
  @type group :: %{reference() => map()}

  @type answers :: %{
          answered: [{reference(), term()}],
          dead: [reference()],
          silent: group()
        }

  @doc "Monitors the processes. From now on the caller should receive nothing but their answers."
  @spec group([map()]) :: group()
  def group(targets) do
    for target <- targets, into: %{} do
      {:erlang.monitor(:process, target.pid, alias: :explicit_unalias), target}
    end
  end

  @spec release(group()) :: :ok
  def release(group) do
    Enum.each(group, fn {monitor, _target} ->
      :erlang.unalias(monitor)
      :erlang.demonitor(monitor, [:flush])
    end)
  end

  @doc "Sends messages whose answers nobody waits for."
  @spec tell(group(), (map() -> [term()])) :: :ok
  def tell(group, messages) do
    nobody = nobody()

    Enum.each(group, fn {_monitor, target} ->
      Enum.each(messages.(target), &send(target.pid, {:system, nobody, &1}))
    end)
  end

  @doc "Sends messages to each process and asks for the answer to the last one, which `await/3` collects."
  @spec ask(group(), atom(), (map() -> [term(), ...])) :: :ok
  def ask(group, label, messages) do
    self = self()
    nobody = nobody()

    Enum.each(group, fn {monitor, target} ->
      send_all(messages.(target), target.pid, nobody, {self, [[:alias | monitor] | label]})
    end)
  end

  defp send_all([last], pid, _nobody, from), do: send(pid, {:system, from, last})

  defp send_all([message | rest], pid, nobody, from) do
    send(pid, {:system, nobody, message})
    send_all(rest, pid, nobody, from)
  end

  # An alias that is none any more: what is sent there goes nowhere.
  defp nobody do
    alias = :erlang.alias()
    :erlang.unalias(alias)
    {self(), [:alias | alias]}
  end

  @doc "Waits until all of the group answered or died, or until the deadline, in monotonic milliseconds."
  @spec await(group(), atom(), integer()) :: answers()
  def await(group, label, deadline), do: await(map_size(group), group, label, deadline, [], [])

  defp await(0, _group, _label, _deadline, answered, dead),
    do: %{answered: answered, dead: dead, silent: %{}}

  defp await(count, group, label, deadline, answered, dead) do
    receive do
      {[[:alias | monitor] | ^label], answer} ->
        await(count - 1, group, label, deadline, [{monitor, answer} | answered], dead)

      {:DOWN, monitor, :process, _pid, _reason} ->
        # It may have answered before, or not have been asked this time.
        asked? = is_map_key(group, monitor) and not List.keymember?(answered, monitor, 0)
        count = if asked?, do: count - 1, else: count
        await(count, group, label, deadline, answered, [monitor | dead])
    after
      max(deadline - System.monotonic_time(:millisecond), 0) ->
        silent = group |> Map.drop(Enum.map(answered, &elem(&1, 0))) |> Map.drop(dead)
        %{answered: answered, dead: dead, silent: silent}
    end
  end
end
