defmodule BeamDeploy.HotUpgrade.CodePathTest do
  # The code path is one for all tests.
  use ExUnit.Case

  alias BeamDeploy.HotUpgrade.{CodePath, SysConfig}

  test "applications and protocols move, the rest stays where it is" do
    path = [
      ~c"/r/releases/1/consolidated",
      ~c"/r/lib/my_app-1/ebin",
      ~c"/otp/lib/stdlib-4.2/ebin",
      ~c".",
      ~c"/r/lib/my_app_web-1/ebin"
    ]

    assert CodePath.switched(
             path,
             %{"my_app" => "/n/lib/my_app-2+abc", "new" => "/n/lib/new-1"},
             "/n/releases/2/consolidated"
           ) ==
             [
               ~c"/n/releases/2/consolidated",
               ~c"/n/lib/my_app-2+abc/ebin",
               ~c"/otp/lib/stdlib-4.2/ebin",
               ~c".",
               ~c"/r/lib/my_app_web-1/ebin",
               ~c"/n/lib/new-1/ebin"
             ]

    assert CodePath.switched(path, %{}, nil) == path
  end

  test "a directory that is not there is left out" do
    path = :code.get_path()
    assert CodePath.set([~c"/no/such/directory" | path]) == :ok
    assert :code.get_path() == path
  end

  describe "the configuration of a release" do
    @describetag :tmp_dir
    @describetag :capture_log

    test "is evaluated as its boot would, its providers included", %{tmp_dir: dir} do
      root = Path.join(dir, "new")
      File.mkdir_p!(Path.join(root, "releases/2"))

      File.write!(
        Path.join(root, "releases/2/runtime.exs"),
        "import Config\nconfig :my_app, b: 2, c: [d: 3]"
      )

      provider =
        {Config.Reader, {{:system, "RELEASE_ROOT", "/releases/2/runtime.exs"}, [env: :prod]}}

      config = [
        my_app: [a: 1, c: [e: 4]],
        elixir: [config_provider_init: %{providers: [provider]}]
      ]

      path = Path.join(root, "releases/2/sys.config")
      File.write!(path, :io_lib.format("~p.~n", [config]))
      assert {:ok, config} = SysConfig.evaluate(path, root)
      assert Enum.sort(config[:my_app][:c]) == [d: 3, e: 4]
      assert {config[:my_app][:a], config[:my_app][:b]} == {1, 2}

      File.write!(Path.join(root, "releases/2/runtime.exs"), "raise \"no\"")

      assert {:error, {:config_failed, {%RuntimeError{message: "no"}, _stack}}} =
               SysConfig.evaluate(path, root)

      File.write!(path, "[{my_app, ")
      assert {:error, {:config_failed, {^path, _why}}} = SysConfig.evaluate(path, root)
    end
  end
end
