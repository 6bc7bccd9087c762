defmodule BeamDeploy.Integration.SoakTest do
  # Swap after swap: what the parent holds does not grow. SOAK_SWAPS is how many, see bench/soak.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Instance
  import BeamDeploy.Test.LogFile
  alias BeamDeploy.Test.{SampleRelease, Wait}

  @moduletag :tmp_dir
  @moduletag :integration
  @moduletag timeout: :infinity

  @swaps String.to_integer(System.get_env("SOAK_SWAPS", "6"))
  # Until every path has been taken once, and both releases are in the store.
  @warm_up 4
  @chunk 20

  test "the parent does not grow", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    assert swap(instance, @warm_up) == 0
    before = measure(instance)

    failed =
      @swaps
      |> chunks()
      |> Enum.map(fn count ->
        failed = swap(instance, count)

        if @swaps > @chunk,
          do:
            IO.puts(
              "#{count} swaps, #{failed} failed: #{inspect(growth(before, measure(instance)))}"
            )

        failed
      end)
      |> Enum.sum()

    later = measure(instance)
    # The connections of callers that are gone, of the last one as well, take a moment to close.
    Wait.until(fn -> open_descriptors(instance) <= before.fds end)
    growth = growth(before, %{later | fds: open_descriptors(instance)})

    IO.puts(
      "RESULT swaps=#{@swaps} failed=#{failed} rss_growth=#{growth.rss} atoms_growth=#{growth.atoms} " <>
        "fds_growth=#{growth.fds} disk_growth=#{growth.disk}"
    )

    assert failed == 0
    # What `global` says where members of a cluster tell each other of a node that is gone.
    refute log(instance) =~ "overlapping partitions"
    assert growth.fds <= 0

    # None for a swap: names of nodes and sides are used again. Each `bin/sample rpc` of this test has a node name of its own.
    assert growth.atoms <= 20 + 2 * div(@swaps, @chunk)
    assert growth.processes <= 2
    assert growth.tables <= 0
    # The history, up to its 100 lines.
    assert growth.disk <= 64 * 1024
    assert growth.rss <= 48 * 1024 * 1024
    assert length(os_pids(instance)) == 2
  end

  defp chunks(total),
    do: List.duplicate(@chunk, div(total, @chunk)) ++ List.wrap(rest(rem(total, @chunk)))

  defp rest(0), do: nil
  defp rest(rest), do: rest

  # In one call: otherwise the time would go into starting VMs that ask for swaps.
  defp swap(instance, count) do
    tarballs = [SampleRelease.tarball("0.2.0"), SampleRelease.tarball("0.1.0")]

    eval!(instance, """
    #{inspect(tarballs)}
    |> Stream.cycle()
    |> Enum.take(#{count})
    |> Enum.count(fn tarball -> BeamDeploy.Remote.upgrade(tarball, [], %{node: node(), terminal: nil}) != :ok end)
    """)
  end

  defp measure(instance) do
    pid = parent_os_pid(instance)
    [_, rss] = Regex.run(~r/^VmRSS:\s+(\d+) kB$/m, File.read!("/proc/#{pid}/status"))

    figures =
      eval!(instance, """
      Enum.each(Process.list(), &:erlang.garbage_collect/1)
      %{
        atoms: :erlang.system_info(:atom_count),
        processes: :erlang.system_info(:process_count),
        tables: length(:ets.all()),
        disk: BeamDeploy.info().store_bytes
      }
      """)

    Map.merge(figures, %{
      rss: String.to_integer(rss) * 1024,
      fds: open_descriptors(instance)
    })
  end

  defp open_descriptors(instance),
    do: length(File.ls!("/proc/#{parent_os_pid(instance)}/fd"))

  defp growth(before, later),
    do: Map.new(before, fn {key, value} -> {key, later[key] - value} end)
end
