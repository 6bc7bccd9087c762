defmodule BeamDeploy.Integration.SignedTest do
  # Where a key is trusted nothing else is loaded, whichever way a release comes in, and whatever becomes of its file.
  use ExUnit.Case, async: true

  alias BeamDeploy.Release.Signature
  alias BeamDeploy.Test.{HotRelease, Instance, SampleRelease}

  @moduletag :tmp_dir
  @moduletag :integration

  setup %{tmp_dir: tmp_dir} do
    {public, private} = Signature.generate()
    %{public: public, private: private, tarball: Path.join(tmp_dir, "release.tar.gz")}
  end

  # Exchanges the file the moment that a phase is logged: handlers run in the process that logs.
  defp exchange(tarball, other, phase) do
    """
    defmodule Exchange do
      def log(%{msg: {:string, text}}, _config) do
        if IO.chardata_to_string(text) =~ #{inspect(phase)}, do: File.cp!(#{inspect(other)}, #{inspect(tarball)})
      end

      def log(_event, _config), do: :ok
    end

    :ok = :logger.add_handler(:exchange, Exchange, %{})
    """
  end

  defp sha256(path),
    do: path |> File.read!() |> then(&:crypto.hash(:sha256, &1)) |> Base.encode16(case: :lower)

  describe "a hot upgrade of a release without a parent" do
    setup %{tmp_dir: tmp_dir, tarball: tarball} do
      File.cp!(HotRelease.tarball("0.2.0", 2), tarball)
      %{release: HotRelease.start(tmp_dir, HotRelease.tarball("0.1.0", 1))}
    end

    defp call(release, function, tarball, options \\ []) do
      options = Keyword.put(options, :otp_app, :hot_app)

      HotRelease.eval!(
        release,
        "BeamDeploy.#{function}(#{inspect(tarball)}, #{inspect(options)})"
      )
    end

    defp code(release), do: HotRelease.eval!(release, "HotApp.Label.module_info(:md5)")
    defp plan(release, tarball, options), do: call(release, "plan", tarball, options)
    defp hot(release, tarball, options), do: call(release, "hot_upgrade", tarball, options)

    defp files(release),
      do: release.root |> Path.join("{lib,releases}/*") |> Path.wildcard(match_dot: true)

    test "takes what is signed, by option and by configuration", context do
      %{release: release, tarball: tarball} = context
      before = {code(release), files(release)}
      signature = tarball <> ".sig"
      {_public, stranger} = Signature.generate()

      ways = [
        fn -> [verify: {:ed25519, context.public}] end,
        fn ->
          key = inspect({:ed25519, context.public})
          HotRelease.eval!(release, "Application.put_env(:beam_deploy, :verify, #{key})")
          []
        end
      ]

      for way <- ways do
        options = way.()

        refused = fn reason ->
          assert plan(release, tarball, options) == {:error, reason}
          assert hot(release, tarball, [force: true] ++ options) == {:error, reason}
          assert {code(release), files(release)} == before
        end

        refused.({:unsigned, signature})
        {:ok, _} = Signature.sign(tarball, stranger)
        refused.({:bad_signature, signature})
        # A good signature, of another tarball.
        {:ok, _} = Signature.sign(HotRelease.tarball("0.1.0", 1), context.private)
        File.rename!(HotRelease.tarball("0.1.0", 1) <> ".sig", signature)
        refused.({:bad_signature, signature})

        {:ok, _} = Signature.sign(tarball, context.private)
        assert {:ok, %{recommendation: :hot}} = plan(release, tarball, options)
        File.rm!(signature)
      end

      # The configuration holds where no option says anything.
      assert hot(release, tarball, verify: nil) == {:error, {:unsigned, signature}}

      {:ok, _} = Signature.sign(tarball, context.private)
      assert hot(release, tarball, []) == :ok
      assert code(release) != elem(before, 0)
    end

    test "refuses to run on a configuration that is none", %{release: release, tarball: tarball} do
      HotRelease.eval!(release, ~s|Application.put_env(:beam_deploy, :verify, "a key")|)

      for function <- ["plan", "hot_upgrade"] do
        assert_raise RuntimeError, ~r/verify: takes \{:ed25519, public_key\}/, fn ->
          call(release, function, tarball)
        end
      end
    end

    test "takes only what `sha256:` names", %{release: release, tarball: tarball} do
      expected = String.duplicate("0", 64)
      mismatch = {:error, {:checksum_mismatch, expected, sha256(tarball)}}
      assert plan(release, tarball, sha256: expected) == mismatch
      assert hot(release, tarball, sha256: expected) == mismatch
      assert hot(release, tarball, sha256: String.upcase(sha256(tarball))) == :ok
    end

    test "loads nothing of a file that is exchanged after it was checked", context do
      %{release: release, tarball: tarball} = context
      {:ok, _} = Signature.sign(tarball, context.private)
      digest = sha256(tarball)
      other = HotRelease.tarball("0.3.0", 3)
      before = {code(release), files(release)}
      HotRelease.eval!(release, exchange(tarball, other, "hot upgrade plan"))

      assert hot(release, tarball, verify: {:ed25519, context.public}) ==
               {:error, {:checksum_mismatch, digest, sha256(other)}}

      assert sha256(tarball) == sha256(other)
      assert {code(release), files(release)} == before
    end
  end

  describe "with a parent" do
    setup %{tmp_dir: tmp_dir, tarball: tarball, public: public, private: private} do
      File.cp!(SampleRelease.tarball("0.2.0"), tarball)
      {:ok, _} = Signature.sign(tarball, private)
      %{instance: Instance.start(tmp_dir, start_options: [verify: {:ed25519, public}])}
    end

    test "a file that is exchanged after it was checked is not deployed", context do
      %{instance: instance, tarball: tarball} = context
      digest = sha256(tarball)
      other = SampleRelease.tarball("0.3.0")
      Instance.eval!(instance, exchange(tarball, other, "swap verify"))

      assert Instance.upgrade(instance, tarball) ==
               {:error, {:checksum_mismatch, digest, sha256(other)}}

      assert Instance.version(instance) == "0.1.0"
      assert Instance.staged(instance) == []
    end

    test "a hot upgrade loads in the peer what was checked and staged", context do
      %{instance: instance, tarball: tarball} = context
      digest = sha256(tarball)
      other = SampleRelease.tarball("0.3.0")

      # What the parent staged is good; what the peer would read is not.
      assert Instance.eval_in_peer!(instance, """
             tarball = #{inspect(other)}
             BeamDeploy.Remote.hot_upgrade_here(tarball, otp_app: :sample, release_root: "/nowhere", sha256: #{inspect(digest)})
             """) == {:error, {:checksum_mismatch, digest, sha256(other)}}

      hot = fn ->
        Instance.eval!(instance, "BeamDeploy.hot_upgrade(#{inspect(tarball)}, otp_app: :sample)")
      end

      plan = fn -> Instance.eval!(instance, "BeamDeploy.plan(#{inspect(tarball)})") end

      File.rename!(tarball <> ".sig", tarball <> ".away")
      assert plan.() == {:error, {:unsigned, tarball <> ".sig"}}
      assert hot.() == {:error, {:unsigned, tarball <> ".sig"}}
      File.rename!(tarball <> ".away", tarball <> ".sig")
      assert {:ok, %{recommendation: :hot}} = plan.()
      assert hot.() == :ok
      assert Instance.eval_in_peer!(instance, "Sample.Label.value()") == "compiled for 0.2.0"
    end
  end
end
