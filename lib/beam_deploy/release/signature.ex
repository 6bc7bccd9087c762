defmodule BeamDeploy.Release.Signature do
  @moduledoc false
  # Responsible for: signatures of tarballs, in a file beside each, and whether one is by the key that is trusted.
  # Not for: where keys are kept.
  #
  # Ed25519 over a line that says what is signed, so that the key's other signatures are none of a tarball, and the
  # SHA-256 of the tarball. What is extracted later has to have that same digest.

  alias BeamDeploy.Release.Archive

  @context "beam_deploy release tarball, sha256\n"

  @type public_key :: {:ed25519, binary()}

  @doc "Whether this is a public key: 32 bytes, or those in Base64."
  @spec public_key?(term()) :: boolean()
  def public_key?({:ed25519, key}) when is_binary(key), do: match?({:ok, _raw}, decode(key))
  def public_key?(_other), do: false

  @doc """
  The key to trust: the one given, else that of the application's environment, `config :beam_deploy, verify: ...`; nil where
  there is none. Raises `ArgumentError` where the environment holds something else: an upgrade that nobody checks is
  not what was asked for.
  """
  @spec trusted(public_key() | nil) :: public_key() | nil
  def trusted(nil) do
    key = Application.get_env(:beam_deploy, :verify)

    if key == nil or public_key?(key),
      do: key,
      else:
        raise(
          ArgumentError,
          "config :beam_deploy, verify: takes {:ed25519, public_key} or nil, got: #{inspect(key)}"
        )
  end

  def trusted(key), do: key

  @doc "A new pair of keys, in Base64."
  @spec generate() :: {public :: String.t(), private :: String.t()}
  def generate do
    {public, private} = :crypto.generate_key(:eddsa, :ed25519)
    {Base.encode64(public), Base.encode64(private)}
  end

  @doc "Where the signature of a tarball lies."
  @spec path(Path.t()) :: Path.t()
  def path(tarball), do: tarball <> ".sig"

  @doc "Writes the signature of a tarball beside it."
  @spec sign(Path.t(), String.t()) :: {:ok, Path.t()} | {:error, term()}
  def sign(tarball, private) do
    with {:ok, key} <- decode(private),
         {:ok, digest} <- Archive.sha256(tarball) do
      signature = :crypto.sign(:eddsa, :none, message(digest), [key, :ed25519])
      file = path(tarball)

      case File.write(file, [Base.encode64(signature), ?\n]) do
        :ok -> {:ok, file}
        {:error, posix} -> {:error, {:unreadable, posix}}
      end
    end
  end

  @doc """
  Checks the signature where a key is trusted. Answers the options of an upgrade, with the digest that was signed: whatever
  becomes of the file from here on, nothing else is staged.
  """
  @spec admit(Path.t(), public_key() | nil, keyword()) :: {:ok, keyword()} | {:error, term()}
  def admit(_tarball, nil, options), do: {:ok, options}

  def admit(tarball, {:ed25519, public}, options) do
    with {:ok, key} <- decode(public),
         {:ok, signature} <- read(path(tarball)),
         {:ok, digest} <- Archive.sha256(tarball),
         :ok <- check(digest, signature, key, tarball),
         :ok <- check_expected(options[:sha256], digest) do
      {:ok, Keyword.put(options, :sha256, digest)}
    end
  end

  defp read(file) do
    with {:ok, text} <- File.read(file),
         {:ok, signature} <- Base.decode64(String.trim(text)) do
      {:ok, signature}
    else
      {:error, :enoent} -> {:error, {:unsigned, file}}
      {:error, posix} -> {:error, {:unreadable, posix}}
      :error -> {:error, {:bad_signature, file}}
    end
  end

  defp check(digest, signature, key, tarball) do
    if byte_size(signature) == 64 and
         :crypto.verify(:eddsa, :none, message(digest), signature, [key, :ed25519]),
       do: :ok,
       else: {:error, {:bad_signature, path(tarball)}}
  end

  defp check_expected(nil, _digest), do: :ok

  defp check_expected(expected, digest) do
    if String.downcase(expected) == digest,
      do: :ok,
      else: {:error, {:checksum_mismatch, String.downcase(expected), digest}}
  end

  defp message(digest), do: @context <> digest

  defp decode(<<key::binary-size(32)>>), do: {:ok, key}

  defp decode(text) do
    case Base.decode64(String.trim(text)) do
      {:ok, <<key::binary-size(32)>>} -> {:ok, key}
      _other -> {:error, :bad_key}
    end
  end
end
