defmodule BeamDeployTest do
  # Where there is neither parent nor peer.
  use ExUnit.Case, async: false

  doctest BeamDeploy

  setup do
    on_exit(fn ->
      System.delete_env("BEAM_DEPLOY")
      Application.delete_env(:beam_deploy, :enabled)
    end)
  end

  describe "enabled?/0" do
    test "is decided by the environment, whatever the configuration says" do
      for on <- ~w(1 true TRUE yes Yes on) do
        System.put_env("BEAM_DEPLOY", on)
        assert BeamDeploy.enabled?()
      end

      Application.put_env(:beam_deploy, :enabled, true)

      for off <- ~w(0 false False no off OFF) do
        System.put_env("BEAM_DEPLOY", off)
        refute BeamDeploy.enabled?()
      end
    end

    test "is decided by the configuration where the environment says nothing" do
      refute BeamDeploy.enabled?()
      Application.put_env(:beam_deploy, :enabled, true)
      assert BeamDeploy.enabled?()
    end

    test "refuses a value that means nothing" do
      System.put_env("BEAM_DEPLOY", "maybe")
      assert_raise ArgumentError, ~r/BEAM_DEPLOY takes 1, true/, &BeamDeploy.enabled?/0
    end
  end

  describe "start_link/2" do
    test "switched off calls the function of :start and returns its result" do
      options = [otp_app: :my_app, start: {Agent, :start_link, [Map, :new, []]}]
      assert {:ok, agent} = BeamDeploy.start_link(options)
      assert Agent.get(agent, & &1) == %{}

      assert BeamDeploy.start_link([],
               otp_app: :my_app,
               start: {Kernel, :send, [self(), :ignore]}
             ) ==
               :ignore
    end

    test "checks its options even when switched off" do
      assert_raise ArgumentError,
                   ~r/:boot_timeout .* takes milliseconds or :infinity, got: "1s"/,
                   fn ->
                     BeamDeploy.start_link(
                       otp_app: :my_app,
                       start: {Agent, :start_link, []},
                       boot_timeout: "1s"
                     )
                   end
    end

    test "on a node without a name says which variables give it one" do
      System.put_env("BEAM_DEPLOY", "1")
      refute Node.alive?()

      assert_raise ArgumentError, ~r/RELEASE_DISTRIBUTION=sname .* RELEASE_NODE/s, fn ->
        BeamDeploy.start_link(otp_app: :my_app, start: {Agent, :start_link, []})
      end
    end
  end

  test "without a parent nothing runs, and nothing is kept" do
    assert BeamDeploy.status() == %{active_node: nil, upgrading: false}
    assert BeamDeploy.info() == %{}
    assert BeamDeploy.peer_node() == nil
    assert BeamDeploy.upgrading?() == false
    assert BeamDeploy.incoming_peer() == nil
    assert BeamDeploy.outgoing_peer() == nil
    assert BeamDeploy.put_handoff(:key, :value) == :ok
    assert BeamDeploy.get_handoff(:key) == nil
    assert BeamDeploy.get_all_handoff() == %{}
    assert BeamDeploy.upgrade("/tmp/x.tar.gz") == {:error, :not_running}

    assert_raise BeamDeploy.Error, ~r/no BeamDeploy parent/, fn ->
      BeamDeploy.upgrade!("/tmp/x.tar.gz")
    end
  end

  test "listen/2 is :gen_tcp.listen/2 outside of a peer" do
    assert {:ok, socket} = BeamDeploy.listen(0, [:binary, active: false, ip: {127, 0, 0, 1}])
    assert {:ok, {{127, 0, 0, 1}, port}} = :inet.sockname(socket)
    assert BeamDeploy.listen(port, ip: {127, 0, 0, 1}) == {:error, :eaddrinuse}
    :ok = :gen_tcp.close(socket)
  end
end
