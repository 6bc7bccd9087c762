defmodule BeamDeploy.HotUpgrade.OptionsTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.HotUpgrade.Options

  test "defaults" do
    assert %Options{
             suspend_timeout: 3_000,
             force: false,
             config: false,
             supervisors: false,
             release_root: nil
           } = Options.hot_upgrade!(otp_app: :my_app)
  end

  test "what is wrong is named, with what it takes" do
    for {options, message} <- [
          {[], ~r/needs the option :otp_app, the name of your application/},
          {[otp_app: "my_app"],
           ~r/:otp_app of BeamDeploy.hot_upgrade takes the name of your application/},
          {[otp_app: :a, suspend_timeout: -1],
           ~r/:suspend_timeout .* takes a positive number of milliseconds, got: -1/},
          {[otp_app: :a, suspend_timeout: "1"], ~r/:suspend_timeout/},
          {[otp_app: :a, force: 1], ~r/:force .* takes true or false/},
          {[otp_app: :a, forced: true], ~r/has no option :forced, only :otp_app/},
          {%{otp_app: :a}, ~r/takes a keyword list/}
        ] do
      assert_raise ArgumentError, message, fn -> Options.hot_upgrade!(options) end
    end

    assert_raise ArgumentError, ~r/BeamDeploy.plan has no option :force/, fn ->
      Options.plan!(force: true)
    end

    assert %Options{otp_app: nil, against: "a"} = Options.plan!(against: "a")
  end
end
