defmodule BeamDeploy.OptionsTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.Options

  @required [otp_app: :my_app, start: {Supervisor, :start_link, [[], []]}]

  test "has the documented defaults" do
    assert %Options{
             endpoint: :convention,
             shutdown_timeout: nil,
             boot_timeout: 120_000,
             health_timeout: 30_000,
             keep_releases: 3,
             max_restarts: 3,
             max_seconds: 60,
             health_check: nil
           } = Options.new!(@required)
  end

  test "takes one endpoint or several" do
    assert Options.new!(@required ++ [endpoint: MyAppWeb.Endpoint]).endpoint == [
             MyAppWeb.Endpoint
           ]

    assert Options.new!(@required ++ [endpoint: [A, B]]).endpoint == [A, B]
    assert Options.new!(@required ++ [endpoint: nil]).endpoint == []
  end

  test "names what is missing" do
    assert_raise ArgumentError, ~r/needs the option :otp_app, the name of your application/, fn ->
      Options.new!(Keyword.delete(@required, :otp_app))
    end

    assert_raise ArgumentError,
                 ~r/needs the option :start, a {module, function, arguments} tuple/,
                 fn ->
                   Options.new!(Keyword.delete(@required, :start))
                 end
  end

  test "names an unknown option, and those that there are" do
    assert_raise ArgumentError,
                 ~r/has no option :boot_time, only :otp_app, :start, .*:boot_timeout/,
                 fn ->
                   Options.new!(@required ++ [boot_time: 1])
                 end

    assert_raise ArgumentError, ~r/takes a keyword list/, fn ->
      apply(Options, :new!, [%{otp_app: :a}])
    end
  end

  for {option, bad} <- [
        otp_app: "my_app",
        otp_app: nil,
        start: {Supervisor, :start_link},
        start: Quote,
        endpoint: "MyAppWeb.Endpoint",
        health_check: {Mod, :fun, :not_a_list},
        before_cutover: Mod,
        shutdown_timeout: -1,
        boot_timeout: nil,
        drain_timeout: 1.5,
        keep_releases: 0,
        max_restarts: -1,
        max_seconds: 0,
        dir: ""
      ] do
    test "refuses #{option}: #{inspect(bad)}" do
      options = Keyword.put(@required, unquote(option), unquote(Macro.escape(bad)))

      assert_raise ArgumentError,
                   ~r/the option :#{unquote(option)} of BeamDeploy.start_link takes/,
                   fn -> Options.new!(options) end
    end
  end

  test "upgrade/2 takes a digest" do
    digest = String.duplicate("aB", 32)
    assert Options.upgrade!(sha256: digest) == [sha256: digest]

    assert_raise ArgumentError, ~r/64 hexadecimal digits/, fn ->
      Options.upgrade!(sha256: "abc")
    end

    assert_raise ArgumentError, ~r/no option :force/, fn -> Options.upgrade!(force: true) end
  end
end
