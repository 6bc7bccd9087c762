defmodule BeamDeploy.Release.SignatureTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO
  import Bitwise

  alias BeamDeploy.{Options, Release.Signature}

  @moduletag :tmp_dir

  setup %{tmp_dir: tmp_dir} do
    tarball = Path.join(tmp_dir, "release.tar.gz")
    File.write!(tarball, "the bytes of a release")
    {public, private} = Signature.generate()
    {:ok, tarball: tarball, public: public, private: private}
  end

  defp digest(text), do: :sha256 |> :crypto.hash(text) |> Base.encode16(case: :lower)

  test "a signed tarball is admitted with the digest that was signed", context do
    {:ok, _file} = Signature.sign(context.tarball, context.private)
    digest = digest("the bytes of a release")
    key = {:ed25519, context.public}
    assert Signature.admit(context.tarball, key, []) == {:ok, [sha256: digest]}

    assert Signature.admit(context.tarball, {:ed25519, Base.decode64!(context.public)}, []) ==
             {:ok, [sha256: digest]}

    # What the caller expects must be what was signed: it would otherwise take its place.
    other = digest("other bytes")

    assert Signature.admit(context.tarball, key, sha256: other) ==
             {:error, {:checksum_mismatch, other, digest}}

    assert Signature.admit(context.tarball, key, sha256: String.upcase(digest)) ==
             {:ok, [sha256: digest]}
  end

  test "without a key nothing is asked", context do
    assert Signature.admit(context.tarball, nil, sha256: "x") == {:ok, [sha256: "x"]}
  end

  test "no single changed bit of tarball or signature is admitted", context do
    {:ok, file} = Signature.sign(context.tarball, context.private)
    key = {:ed25519, context.public}
    signature = file |> File.read!() |> String.trim() |> Base.decode64!()
    <<number::512>> = signature

    for bit <- 0..511 do
      File.write!(file, Base.encode64(<<bxor(number, bsl(1, bit))::512>>))
      assert Signature.admit(context.tarball, key, []) == {:error, {:bad_signature, file}}
    end

    File.write!(file, Base.encode64(signature))
    assert {:ok, _} = Signature.admit(context.tarball, key, [])
    File.write!(context.tarball, "the bytes of a releasf")
    assert Signature.admit(context.tarball, key, []) == {:error, {:bad_signature, file}}
  end

  # A key that signs other things as well: their signatures are none of a tarball.
  test "a bare signature of the digest is refused", context do
    digest = digest("the bytes of a release")
    private = Base.decode64!(context.private)
    bare = :crypto.sign(:eddsa, :none, digest, [private, :ed25519])
    File.write!(context.tarball <> ".sig", Base.encode64(bare))

    assert {:error, {:bad_signature, _}} =
             Signature.admit(context.tarball, {:ed25519, context.public}, [])
  end

  test "the option takes a key, and says so", context do
    valid = [otp_app: :my_app, start: {Supervisor, :start_link, []}]
    assert Options.new!([verify: {:ed25519, context.public}] ++ valid).verify

    for wrong <- [context.public, {:ed25519, "short"}, {:rsa, context.public}, {:ed25519, nil}] do
      assert_raise ArgumentError, ~r/:verify.*ed25519/, fn ->
        Options.new!([verify: wrong] ++ valid)
      end
    end
  end

  test "the tasks make keys and signatures that fit", %{tmp_dir: tmp_dir} = context do
    key = Path.join(tmp_dir, "deploy.key")
    output = capture_io(fn -> Mix.Tasks.BeamDeploy.Gen.Key.run([key]) end)
    [_, public] = Regex.run(~r/\{:ed25519, "(.+)"\}/, output)
    assert %{mode: 0o100600} = File.stat!(key)
    assert_raise Mix.Error, ~r/exists/, fn -> Mix.Tasks.BeamDeploy.Gen.Key.run([key]) end

    output = capture_io(fn -> Mix.Tasks.BeamDeploy.Sign.run([context.tarball, "--key", key]) end)

    assert output =~ "release.tar.gz.sig"
    assert {:ok, _} = Signature.admit(context.tarball, {:ed25519, public}, [])

    assert_raise Mix.Error, ~r/no key/, fn -> Mix.Tasks.BeamDeploy.Sign.run([context.tarball]) end

    assert_raise Mix.Error, ~r/no such file/, fn ->
      Mix.Tasks.BeamDeploy.Sign.run([context.tarball <> ".absent", "--key", key])
    end
  end
end
