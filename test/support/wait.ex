defmodule BeamDeploy.Test.Wait do
  @moduledoc false

  @interval 10

  @doc "Returns when the condition holds; fails the test when it does not within the time, saying what `otherwise` says."
  def until(condition, options \\ []) do
    deadline = System.monotonic_time(:millisecond) + Keyword.get(options, :timeout, 60_000)

    poll(
      condition,
      deadline,
      Keyword.get(options, :otherwise, fn -> "the condition does not come true" end)
    )
  end

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
