defmodule BeamDeploy.Integration.OperatorTest do
  # bin/NAME_deploy of a real release, and signed tarballs.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Instance
  alias BeamDeploy.Release.Signature
  alias BeamDeploy.Test.SampleRelease

  @moduletag :tmp_dir
  @moduletag :integration

  defp deploy(instance, arguments, options \\ []) do
    System.cmd(
      Path.join(instance.root, "bin/sample_deploy"),
      arguments,
      [env: instance.environment, stderr_to_stdout: true] ++ options
    )
  end

  test "bin/NAME_deploy does what an operator wants and says how it went", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    # Nothing in a path means anything to a shell or to Elixir.
    directory = Path.join(tmp_dir, ~S|a "b' $HOME #{c} \d|)
    File.mkdir_p!(directory)
    File.cp!(SampleRelease.tarball("0.2.0"), Path.join(directory, "new release.tar.gz"))

    assert {"0.1.0 serves on " <> _, 0} = deploy(instance, ["status"])

    assert {output, 0} = deploy(instance, ["plan", "new release.tar.gz"], cd: directory)
    assert output =~ "0.1.0 -> 0.2.0"
    assert output =~ "recommended: "

    assert {output, 0} = deploy(instance, ["upgrade", "new release.tar.gz"], cd: directory)
    assert output =~ "0.1.0 -> 0.2.0"
    assert version(instance) == "0.2.0"

    assert {output, 0} = deploy(instance, ["rollback"])
    assert output =~ "0.2.0 -> 0.1.0"
    assert {output, 1} = deploy(instance, ["rollback", "9.9.9"])
    assert output =~ ~s|error: there is no release "9.9.9" in the store|
    assert {output, 1} = deploy(instance, ["upgrade", "/no/where.tar.gz"])
    assert output =~ "error: there is no such file"

    wrong = String.duplicate("0", 64)
    arguments = ["upgrade", SampleRelease.tarball("0.2.0"), "--sha256", wrong]
    assert {output, 1} = deploy(instance, arguments)
    assert output =~ "not the expected one"

    assert {output, 0} = deploy(instance, ["history"])
    assert output =~ ~r/^\S+Z  rollback    0\.2\.0 -> 0\.1\.0  ok$/m
    assert output =~ ~r/^\S+Z  blue_green  0\.1\.0 -> 0\.2\.0  ok$/m
    assert {output, 0} = deploy(instance, ["info"])
    assert output =~ "store_bytes"
    assert {output, 0} = deploy(instance, [])
    assert output =~ "Usage"
    assert {output, 2} = deploy(instance, ["frobnicate"])
    assert output =~ "Usage"
    assert {output, 2} = deploy(instance, ["upgrade", "x", "--sha", "1"])
    assert output =~ "--sha"

    signal(parent_os_pid(instance), "TERM")
    await_exit(instance)
    assert {_output, status} = deploy(instance, ["status"])
    assert status != 0
  end

  test "with a trusted key only what it has signed is deployed", %{tmp_dir: tmp_dir} do
    {public, private} = Signature.generate()
    {_other, stranger} = Signature.generate()
    instance = start(tmp_dir, start_options: [verify: {:ed25519, public}])
    tarball = Path.join(tmp_dir, "release.tar.gz")
    File.cp!(SampleRelease.tarball("0.2.0"), tarball)
    signature = tarball <> ".sig"

    assert upgrade(instance, tarball) == {:error, {:unsigned, signature}}

    for spoil <- [
          fn -> {:ok, _} = Signature.sign(tarball, stranger) end,
          fn -> File.write!(signature, "not Base64!") end,
          fn -> File.write!(signature, Base.encode64("short")) end
        ] do
      spoil.()
      assert upgrade(instance, tarball) == {:error, {:bad_signature, signature}}
    end

    # A good signature, of another tarball.
    {:ok, ^signature} = Signature.sign(tarball, private)
    File.write!(tarball, "more", [:append])
    assert upgrade(instance, tarball) == {:error, {:bad_signature, signature}}

    assert {:error, {:bad_signature, _}} =
             eval!(instance, "BeamDeploy.hot_upgrade(#{inspect(tarball)}, otp_app: :sample)")

    assert version(instance) == "0.1.0"
    assert staged(instance) == []

    File.cp!(SampleRelease.tarball("0.2.0"), tarball)
    assert upgrade(instance, tarball) == :ok
    assert version(instance) == "0.2.0"
  end
end
