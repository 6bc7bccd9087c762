defmodule BeamDeploy.Release.BootTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.Release
  alias BeamDeploy.Release.Boot

  @base %Release{
    name: "my_app",
    version: "0.1.0",
    root: "/srv/my_app",
    erts_version: "13.1.5",
    bundled_erts?: true,
    applications: %{}
  }
  @release %{@base | version: "0.2.0", root: "/srv/my_app/beam_deploy/my_app/releases/0.2.0-abc"}

  @peer %{
    node: :my_app_green@host,
    long_names?: false,
    listens?: true,
    parent: :my_app@host,
    side: :green,
    outgoing: :my_app_blue@host,
    cookie: "/run/green.cookie",
    socket: "/run/s",
    boot: "/run/green",
    output: "/run/green.log",
    preload: "/run/green.modules"
  }

  defp environment(peer \\ @peer, inherited \\ %{}) do
    Map.new(Boot.command(@release, peer, @base, inherited).env, fn
      {name, false} -> {to_string(name), nil}
      {name, value} -> {to_string(name), to_string(value)}
    end)
  end

  test "the release's identity replaces the parent's" do
    assert %{
             "RELEASE_ROOT" => "/srv/my_app/beam_deploy/my_app/releases/0.2.0-abc",
             "RELEASE_VSN" => "0.2.0",
             "RELEASE_NAME" => "my_app",
             "RELEASE_NODE" => "my_app_green@host",
             "RELEASE_DISTRIBUTION" => "sname",
             "BEAM_DEPLOY_OUTGOING" => "my_app_blue@host"
           } = environment()
  end

  test "a first peer replaces nobody" do
    assert environment(%{@peer | outgoing: nil})["BEAM_DEPLOY_OUTGOING"] == nil
  end

  test "the kind of the name is the parent's" do
    assert environment(%{@peer | long_names?: true})["RELEASE_DISTRIBUTION"] == "name"
  end

  test "a peer that shall not listen is told so" do
    refute ~c"-dist_listen" in Boot.command(@release, @peer, @base, %{}).args

    assert [~c"-dist_listen", ~c"false"] --
             Boot.command(@release, %{@peer | listens?: false}, @base, %{}).args == []
  end

  test "the cookie is in a file, since both a command line and a crash of `:peer` show what they are given" do
    environment = environment(@peer, %{"RELEASE_COOKIE" => "secret"})
    assert environment["BEAM_DEPLOY_COOKIE"] == "/run/green.cookie"
    refute is_map_key(environment, "RELEASE_COOKIE")
  end

  test "what bin/my_app made of its own release is not inherited; what the operator chose is" do
    inherited = %{
      "RELEASE_VM_ARGS" => "/srv/my_app/releases/0.1.0/vm.args",
      "RELEASE_TMP" => "/srv/my_app/tmp",
      "RELEASE_SYS_CONFIG" => "/srv/my_app/tmp/my_app-0.1.0-20260101-abcd.runtime",
      "RELEASE_BOOT_SCRIPT" => "start",
      "RELEASE_MODE" => "embedded"
    }

    environment = environment(@peer, inherited)
    for name <- Map.keys(inherited), do: assert({name, environment[name]} == {name, nil})

    chosen = %{
      "RELEASE_VM_ARGS" => "/etc/my_app/vm.args",
      "RELEASE_TMP" => "/var/tmp",
      "RELEASE_SYS_CONFIG" => "/etc/my_app/sys"
    }

    environment = environment(@peer, chosen)
    for name <- Map.keys(chosen), do: refute(is_map_key(environment, name))
  end

  test "the parent's runtime system is none of the peer's business" do
    for name <- ~w(BINDIR ROOTDIR EMU PROGNAME),
        do: assert({:ok, nil} == Map.fetch(environment(), name))
  end

  describe "boot_script/1" do
    @hook {:apply, {BeamDeploy.PeerNode, :boot, []}}

    test "adds one instruction, after stdlib and before config providers and applications" do
      instructions = [
        {:preLoaded, [:init]},
        {:apply, {:application, :start_boot, [:kernel, :permanent]}},
        {:apply, {:application, :start_boot, [:stdlib, :permanent]}},
        {:apply, {Config.Provider, :boot, []}},
        {:apply, {:application, :start_boot, [:my_app, :permanent]}},
        {:progress, :started}
      ]

      script = :erlang.term_to_binary({:script, {~c"my_app", ~c"0.2.0"}, instructions})
      assert {:ok, changed} = Boot.boot_script(script)
      assert {:script, {~c"my_app", ~c"0.2.0"}, with_hook} = :erlang.binary_to_term(changed)
      assert List.delete(with_hook, @hook) == instructions
      assert Enum.at(with_hook, 3) == @hook
    end

    test "of something else is refused" do
      assert {:error, {:invalid_release, :boot_script}} = Boot.boot_script("no boot script")

      assert {:error, {:invalid_release, :boot_script}} =
               Boot.boot_script(:erlang.term_to_binary({:script, {~c"a", ~c"b"}, []}))
    end
  end
end
