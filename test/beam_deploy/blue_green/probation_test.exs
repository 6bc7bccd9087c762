defmodule BeamDeploy.BlueGreen.ProbationTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.BlueGreen.Probation
  alias BeamDeploy.Release

  @release %Release{
    name: "a",
    version: "1",
    root: "/a",
    erts_version: "13.0",
    bundled_erts?: true,
    applications: %{}
  }

  defp after_ends(times, max_restarts) do
    0
    |> List.duplicate(times)
    |> Enum.reduce(Probation.new(@release, 60, 0), fn now, probation ->
      Probation.ended(probation, now)
    end)
    |> Probation.failed?(max_restarts)
  end

  test "one end is an accident, two are not" do
    refute after_ends(1, 3)
    assert after_ends(2, 3)
  end

  test "it comes before the parent gives up" do
    assert after_ends(1, 0)
    refute after_ends(1, 1)
    assert after_ends(2, 1)
  end

  test "who has served for long enough has proved itself" do
    probation = Probation.new(@release, 60, 0)
    assert Probation.ended(probation, 61) == nil
    refute probation |> Probation.ended(59) |> Probation.ended(61) |> Probation.failed?(3)
    assert probation |> Probation.ended(59) |> Probation.ended(60) |> Probation.failed?(3)
  end

  describe "what is gone back to" do
    setup do
      [one, two, three] = for root <- ["/1", "/2", "/3"], do: %{@release | root: root}
      %{one: one, two: two, three: three}
    end

    test "is what served before", %{one: one, two: two, three: three} do
      probation = Probation.next(nil, one, two, 60, 0)
      assert probation.previous == one
      assert Probation.next(probation, two, three, 60, 1).previous == two
    end

    test "is not what has ended by itself on its own probation", %{
      one: one,
      two: two,
      three: three
    } do
      ended = nil |> Probation.next(one, two, 60, 0) |> Probation.ended(5)
      assert %{previous: ^one, crashes: 0, until: 70} = Probation.next(ended, two, three, 60, 10)
      # It has served for long enough since.
      assert Probation.next(ended, two, three, 60, 61).previous == two
    end

    test "is nothing for what has just been gone back to", %{one: one, two: two} do
      ended = nil |> Probation.next(one, two, 60, 0) |> Probation.ended(5)
      assert Probation.next(ended, two, one, 60, 10) == nil
    end
  end
end
