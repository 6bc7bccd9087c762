defmodule BeamDeploy.HotUpgrade.AsideTest do
  # Hot upgrades of nodes that were not booted from a release, each a VM of its own, with a temporary directory of theirs.
  use ExUnit.Case, async: true

  alias BeamDeploy.Test.{Beams, Tarball}

  @moduletag :tmp_dir
  @libraries :beam_deploy |> Application.app_dir("ebin") |> Path.expand()

  # As `mix run` would have left it.
  @running """
  {:ok, _} = Application.ensure_all_started(:beam_deploy)
  {:ok, _} = Application.ensure_all_started(:my_app)
  1 = :bd_aside.value()
  """

  setup %{tmp_dir: dir} do
    shared = Path.join(dir, "shared")
    File.mkdir_p!(shared)

    tarballs =
      for {version, value} <- [{"0.2.0", 2}, {"0.3.0", 3}, {"0.4.0", 4}], into: %{} do
        files = [
          {"lib/my_app-1.0.0/ebin/bd_aside.beam", Beams.compile(:bd_aside, value)},
          {"lib/my_app-1.0.0/ebin/my_app.app", application(version)}
        ]

        tarball = Path.join(dir, "my_app-#{version}.tar.gz")
        {version, Tarball.write!(tarball, Tarball.release(version: version, files: files))}
      end

    ebin = Path.join(dir, "running/my_app-0.1.0/ebin")
    File.mkdir_p!(ebin)
    File.write!(Path.join(ebin, "bd_aside.beam"), Beams.compile(:bd_aside, 1))
    File.write!(Path.join(ebin, "my_app.app"), application("0.1.0"))
    %{shared: shared, tarballs: tarballs, ebin: ebin}
  end

  defp application(version) do
    ~s({application, my_app, [{vsn, "#{version}"}, {modules, [bd_aside]}, {registered, []}, {applications, [kernel, stdlib]}]}.)
  end

  # A node that evaluates this and ends.
  defp node(context, expression) do
    System.cmd("elixir", ["-pa", @libraries, "-pa", context.ebin, "-e", @running <> expression],
      env: [{"TMPDIR", context.shared}, {"RELEASE_ROOT", nil}, {"RELEASE_VSN", nil}],
      stderr_to_stdout: true
    )
  end

  defp upgrade(tarball) do
    """
    :ok = BeamDeploy.hot_upgrade(#{inspect(tarball)}, otp_app: :my_app, force: true)
    IO.puts("value \#{:bd_aside.value()} of \#{length(File.ls!(System.tmp_dir!()))}")
    """
  end

  defp age(directory), do: File.touch!(directory, System.os_time(:second) - 3_600)
  defp directories(context), do: context.shared |> Path.join("*") |> Path.wildcard()

  test "a node keeps what it may need, and the next one removes what it has left", context do
    upgrades = for version <- ["0.2.0", "0.3.0", "0.4.0"], do: upgrade(context.tarballs[version])

    assert {output, 0} =
             node(
               context,
               Enum.join(upgrades)
             )

    # That of the upgrade before was needed in case this one failed.
    assert output =~ "value 2 of 1"
    assert output =~ "value 3 of 2"
    assert output =~ "value 4 of 2"
    assert [_, _] = left = directories(context)

    Enum.each(left, &File.touch!/1)
    # Just made, it could be of a node that is about to take its lock.
    assert {_output, 0} = node(context, "BeamDeploy.HotUpgrade.Aside.sweep()")
    assert directories(context) == left

    Enum.each(left, &age/1)

    assert {output, 0} = node(context, upgrade(context.tarballs["0.2.0"]))

    assert output =~ "value 2 of 1"
  end

  test "one of a node that runs stays, however old", context do
    # The node says when it has made its directory, and ends with its standard input.
    port =
      Port.open({:spawn_executable, System.find_executable("elixir")}, [
        :binary,
        args: [
          "-pa",
          @libraries,
          "-e",
          ~s|{:ok, _} = BeamDeploy.HotUpgrade.Aside.create("1"); IO.puts("made"); IO.read(:line)|
        ],
        env: [{~c"TMPDIR", to_charlist(context.shared)}]
      ])

    assert_receive {^port, {:data, "made" <> _}}
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    assert [directory] = directories(context)
    assert %{mode: 0o40700} = File.stat!(directory)
    age(directory)
    assert {_output, 0} = node(context, "BeamDeploy.HotUpgrade.Aside.sweep()")
    assert directories(context) == [directory]

    Port.close(port)
    BeamDeploy.Test.Wait.until(fn -> not File.exists?("/proc/#{os_pid}") end)
    age(directory)
    assert {_output, 0} = node(context, "BeamDeploy.HotUpgrade.Aside.sweep()")
    assert directories(context) == []
  end

  test "what is not a directory of this user is left alone", context do
    target = Path.join(context.tmp_dir, "precious")
    File.mkdir_p!(target)
    File.write!(Path.join(target, "file"), "")
    link = Path.join(context.shared, "beam_deploy-hot-1-link")
    File.ln_s!(target, link)
    file = Path.join(context.shared, "beam_deploy-hot-1-file")
    File.write!(file, "")
    for path <- [target, file], do: age(path)
    assert {_output, 0} = node(context, "BeamDeploy.HotUpgrade.Aside.sweep()")
    assert Enum.sort(directories(context)) == [file, link]
    assert File.exists?(Path.join(target, "file"))
  end

  test "an upgrade that fails leaves nothing", context do
    files = [
      {"lib/my_app-1.0.0/ebin/bd_aside.beam", Beams.compile(:bd_aside, 5)},
      {"lib/my_app-1.0.0/ebin/my_app.app", application("0.5.0")},
      {"releases/0.5.0/sys.config", "[{my_app, "}
    ]

    tarball = Path.join(context.tmp_dir, "my_app-0.5.0.tar.gz")
    Tarball.write!(tarball, Tarball.release(version: "0.5.0", files: files))

    assert {output, 0} =
             node(context, """
             {:error, {:config_failed, _}} = BeamDeploy.hot_upgrade(#{inspect(tarball)}, otp_app: :my_app, config: true, force: true)
             IO.puts("value #\{:bd_aside.value()}")
             """)

    assert output =~ "value 1"
    assert directories(context) == []
  end
end
