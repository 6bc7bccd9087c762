defmodule Mix.Tasks.BeamDeploy.Gen.Key do
  @shortdoc "Generates a pair of keys to sign release tarballs with"

  @moduledoc """
  Generates an Ed25519 key pair for `mix beam_deploy.sign`.

      $ mix beam_deploy.gen.key deploy.key

  The private key goes to the file, which only you can read. It signs what your machines run: keep it where tarballs are
  built, never on those machines. The public key is printed, as the option that trusts it:

      BeamDeploy.start_link(
        verify: {:ed25519, "…"},
        …
      )
  """

  use Mix.Task

  alias BeamDeploy.Release.Signature

  @impl true
  def run([path]) do
    {public, private} = Signature.generate()
    # Never over another key, and nothing is in it before only its owner can read it.
    case File.open(path, [:write, :exclusive]) do
      {:ok, file} ->
        :ok = File.chmod(path, 0o600)
        :ok = IO.write(file, private <> "\n")
        :ok = File.close(file)
        Mix.shell().info("verify: {:ed25519, #{inspect(public)}}")

      {:error, posix} ->
        Mix.raise("cannot write #{path}: #{:file.format_error(posix)}")
    end
  end

  def run(_arguments), do: Mix.raise("usage: mix beam_deploy.gen.key FILE")
end
