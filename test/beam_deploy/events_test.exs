defmodule BeamDeploy.EventsTest do
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog
  alias BeamDeploy.Events
  alias BeamDeploy.Events.{Subscribers, Terminal}
  alias BeamDeploy.Test.Wait

  setup do
    start_supervised!(Subscribers)
    :ok = Subscribers.add(self())
    :ok
  end

  test "a whole run and its phases, in order, with what they took" do
    capture_log(fn ->
      assert {:ok, %{to: "2"}} =
               Events.run(:swap, %{action: :upgrade, from: "1"}, fn ->
                 assert Events.span(:swap, :boot, %{version: "2"}, fn -> {:ok, :peer} end) ==
                          {:ok, :peer}

                 assert [{:boot, milliseconds}] = Events.timings()
                 assert is_float(milliseconds)
                 {:ok, %{to: "2"}}
               end)
    end)

    assert_received {:beam_deploy, [:swap, :start], %{action: :upgrade, from: "1"}}
    assert_received {:beam_deploy, [:swap, :phase, :start], %{phase: :boot, version: "2"}}
    assert_received {:beam_deploy, [:swap, :phase, :stop], %{phase: :boot, duration_ms: _}}
    assert_received {:beam_deploy, [:swap, :stop], %{to: "2", duration_ms: _}}
  end

  test "round durations are printed as numbers that an operator reads" do
    duration = System.convert_time_unit(1_700, :millisecond, :native)
    log = capture_log(fn -> Events.told(:swap, :boot, %{version: "2"}, duration, :ok) end)
    assert log =~ "swap boot version=2 1700.0 ms"
    assert_received {:beam_deploy, [:swap, :phase, :stop], %{duration_ms: 1_700.0}}
  end

  test "failures are told, returned and raised, and the log has a sentence without what a peer printed" do
    reason = {:boot_failed, %{version: "2", output: "SECRET in the output"}}

    log =
      capture_log(fn ->
        assert Events.run(:swap, %{}, fn ->
                 Events.span(:swap, :boot, %{}, fn -> {:error, reason} end)
               end) ==
                 {:error, reason}

        assert_raise RuntimeError, "bug", fn -> Events.run(:swap, %{}, fn -> raise "bug" end) end
      end)

    assert log =~ "the new release does not boot"
    refute log =~ "SECRET"
    assert_received {:beam_deploy, [:swap, :phase, :exception], %{phase: :boot, reason: ^reason}}
    assert_received {:beam_deploy, [:swap, :exception], %{reason: ^reason}}

    assert_received {:beam_deploy, [:swap, :exception],
                     %{reason: {:crashed, %RuntimeError{message: "bug"}}}}
  end

  test "a subscriber that ends is forgotten, and none is told twice" do
    :ok = Subscribers.add(self())
    {pid, monitor} = spawn_monitor(fn -> Subscribers.add(self()) end)
    assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}
    # It hears of that by itself.
    Wait.until(fn -> Map.keys(:sys.get_state(Subscribers)) == [self()] end)
    :ok = Subscribers.publish([:swap, :start], %{})
    assert_received {:beam_deploy, [:swap, :start], %{}}
    refute_received {:beam_deploy, [:swap, :start], %{}}
  end

  test "a terminal gets whole lines" do
    stop = %{phase: :boot, duration_ms: 12.34, version: "2", node: :n@h}

    assert IO.iodata_to_binary(Terminal.line([:swap, :phase, :stop], stop)) ==
             "boot             12.3 ms  version=2  node=n@h"

    failed = %{phase: :stage, duration_ms: 1.0, reason: :release_not_found}

    assert IO.iodata_to_binary(Terminal.line([:swap, :phase, :exception], failed)) ==
             "stage             1.0 ms failed: there is no such file"

    assert IO.iodata_to_binary(
             Terminal.line([:swap, :stop], %{from: "1", to: "2", duration_ms: 7.0})
           ) ==
             "done              7.0 ms  1 -> 2"

    assert Terminal.line([:swap, :start], %{}) == nil
  end
end
