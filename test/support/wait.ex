defmodule BeamDeploy.Test.Wait do
  @moduledoc false

  @interval 10
  @patience 180_000

  @doc "How long, in milliseconds, to wait for what has to come: longer than the slowest machine takes."
  def patience, do: @patience

  @doc "Returns when the condition holds; fails the test when it does not, saying what `otherwise` says."
  def until(condition, options \\ []) do
    deadline = System.monotonic_time(:millisecond) + @patience

    poll(
      condition,
      deadline,
      Keyword.get(options, :otherwise, fn -> "the condition does not come true" end)
    )
  end

  @doc "What the task comes to."
  def await(task), do: Task.await(task, @patience)

  defp poll(condition, deadline, otherwise) do
    cond do
      condition.() ->
        :ok

      System.monotonic_time(:millisecond) > deadline ->
        ExUnit.Assertions.flunk(otherwise.())

      true ->
        Process.sleep(@interval)
        poll(condition, deadline, otherwise)
    end
  end
end
