defmodule Mix.Tasks.BeamDeploy.Sign do
  @shortdoc "Signs a release tarball"

  @moduledoc """
  Signs a release tarball for parents with the option `:verify`.

      $ mix beam_deploy.sign _build/prod/my_app-0.2.0.tar.gz --key deploy.key

  Writes the signature beside the tarball, with `.sig` at the end of its name. Both have to be on the machine
  where the tarball is deployed. The key is of `mix beam_deploy.gen.key`; without `--key` it is taken from the
  environment variable `BEAM_DEPLOY_KEY`, which holds the key itself.
  """

  use Mix.Task

  alias BeamDeploy.Release.Signature

  @impl true
  def run(arguments) do
    case OptionParser.parse(arguments, strict: [key: :string]) do
      {options, [tarball], []} -> sign(tarball, private_key(options))
      _other -> Mix.raise("usage: mix beam_deploy.sign TARBALL [--key FILE]")
    end
  end

  defp private_key(key: file) do
    case File.read(file) do
      {:ok, key} -> key
      {:error, posix} -> Mix.raise("cannot read the key #{file}: #{:file.format_error(posix)}")
    end
  end

  defp private_key([]) do
    System.get_env("BEAM_DEPLOY_KEY") ||
      Mix.raise("no key: give --key FILE or set BEAM_DEPLOY_KEY")
  end

  defp sign(tarball, key) do
    case Signature.sign(tarball, key) do
      {:ok, signature} -> Mix.shell().info("signed: #{signature}")
      {:error, :bad_key} -> Mix.raise("that is no key of mix beam_deploy.gen.key")
      {:error, {:unreadable, posix}} -> Mix.raise("#{tarball}: #{:file.format_error(posix)}")
    end
  end
end
