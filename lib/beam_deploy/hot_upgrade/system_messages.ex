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

  @typedoc "What was asked of a group, and how many answers are owed, by each process and by all."
  @opaque question :: %{
            label: atom(),
            group: group(),
            owed_by: (map() -> non_neg_integer()),
            owed: non_neg_integer()
          }

  @type answers :: %{
          answered: [{reference(), term()}],
          dead: [reference()],
          silent: group()
        }

  @typedoc "Where answers go that nobody waits for."
  @opaque nobody :: {pid(), :nobody}

  @doc "Monitors the processes. From now on the caller should receive nothing but their answers."
  @spec group([map()]) :: group()
  def group(targets) do
    for target <- targets, into: %{} do
      {:erlang.monitor(:process, target.pid, alias: :explicit_unalias), target}
    end
  end

  @doc "A process that has ended: what is sent to it is not even copied."
  @spec nobody() :: nobody()
  def nobody do
    {pid, monitor} = spawn_monitor(fn -> :ok end)

    receive do
      {:DOWN, ^monitor, :process, ^pid, _reason} -> {pid, :nobody}
    end
  end

  @doc "Gives back the monitors. In portions, so that whoever waits is served in between."
  @spec release(group()) :: :ok
  def release(group) do
    in_portions(group, fn {monitor, _target} ->
      :erlang.unalias(monitor)
      :erlang.demonitor(monitor, [:flush])
    end)
  end

  @doc "Sends messages whose answers nobody waits for."
  @spec tell(group(), nobody(), (map() -> [term()])) :: :ok
  def tell(group, nobody, messages), do: Enum.each(group, &tell_one(&1, nobody, messages))

  @doc "The same where there is no hurry."
  @spec tell_in_portions(group(), nobody(), (map() -> [term()])) :: :ok
  def tell_in_portions(group, nobody, messages),
    do: in_portions(group, &tell_one(&1, nobody, messages))

  defp tell_one({_monitor, target}, nobody, messages),
    do: Enum.each(messages.(target), &send(target.pid, {:system, nobody, &1}))

  @portion 500

  defp in_portions(group, function) do
    group
    |> Stream.chunk_every(@portion)
    |> Enum.each(fn portion ->
      Enum.each(portion, function)
      # All that these messages woke stand in the queue ahead of us.
      :erlang.yield()
    end)
  end

  @doc "Sends messages to each process and asks for the answers, which `await/2` collects."
  @spec ask(group(), atom(), (map() -> [term()])) :: question()
  def ask(group, label, messages), do: ask(group, label, messages, nil, fn _target -> [] end)

  @doc "The same, and tells each process something right behind it, without another turn of the process."
  @spec ask(group(), atom(), (map() -> [term()]), nobody() | nil, (map() -> [term()])) ::
          question()
  def ask(group, label, messages, nobody, told) do
    self = self()

    owed =
      Enum.reduce(group, 0, fn {monitor, target}, owed ->
        from = {self, [[:alias | monitor] | label]}
        messages = messages.(target)
        Enum.each(messages, &send(target.pid, {:system, from, &1}))
        tell_one({monitor, target}, nobody, told)
        owed + length(messages)
      end)

    %{label: label, group: group, owed_by: &length(messages.(&1)), owed: owed}
  end

  @doc "Waits until all have answered or died, or until the deadline, in monotonic milliseconds."
  @spec await(question(), integer()) :: answers()
  def await(question, deadline), do: await(question.owed, question, deadline, [], [])

  defp await(0, _question, _deadline, answered, dead),
    do: %{answered: answered, dead: dead, silent: %{}}

  defp await(owed, %{label: label, group: group} = question, deadline, answered, dead) do
    receive do
      {[[:alias | monitor] | ^label], answer} ->
        await(owed - 1, question, deadline, [{monitor, answer} | answered], dead)

      {:DOWN, monitor, :process, _pid, _reason} ->
        # It may have answered before, or not have been asked this time.
        rest = if target = group[monitor], do: owing(monitor, target, question, answered), else: 0
        await(owed - rest, question, deadline, answered, [monitor | dead])
    after
      max(deadline - System.monotonic_time(:millisecond), 0) ->
        %{answered: answered, dead: dead, silent: silent(question, answered, dead)}
    end
  end

  defp owing(monitor, target, question, answered),
    do: question.owed_by.(target) - Enum.count(answered, &match?({^monitor, _answer}, &1))

  defp silent(question, answered, dead) do
    answers = Enum.frequencies_by(answered, &elem(&1, 0))

    question.group
    |> Map.drop(dead)
    |> Map.filter(fn {monitor, target} ->
      Map.get(answers, monitor, 0) < question.owed_by.(target)
    end)
  end
end
