defmodule BeamDeploy.Release.Archive do
  @moduledoc false
  # Responsible for: from a tarball to a staged release, or to a reason why not and nothing left of it.
  # Not for: which releases are kept and which one is current (Store).

  alias BeamDeploy.{Native, Release}
  alias BeamDeploy.Release.{Platform, Store}

  @type reason ::
          :release_not_found
          | {:unreadable, File.posix()}
          | {:extract_failed, String.t() | File.posix()}
          | {:unsafe_archive, entry :: binary(), why :: atom()}
          | {:checksum_mismatch, expected :: String.t(), actual :: String.t()}
          | {:invalid_release, Release.why()}
          | {:incompatible_release, map()}

  @typedoc """
    * `:otp_app` - required by `stage/3`
    * `:sha256` - of the tarball, in hexadecimal
    * `:link_from` - root of a release in the same store whose equal files are shared; by default the current one's,
      `nil` copies everything
    * `:limits` - see `default_limits/0`
    * `:platform` - what the release has to run on, by default the running VM's
  """
  @type option ::
          {:otp_app, atom()}
          | {:sha256, String.t() | nil}
          | {:link_from, Path.t() | nil}
          | {:limits, map()}
          | {:platform, Platform.t()}

  @type metadata :: %{
          name: String.t(),
          version: String.t(),
          erts_version: String.t(),
          bundled_erts?: boolean(),
          applications: %{String.t() => String.t()},
          binary: Platform.binary_facts() | nil
        }

  # A release with every asset of a large shop has some 500 MB. Text compresses up to 1:1000, a release 1:3.
  @limits %{
    max_bytes: 4 * 1024 * 1024 * 1024,
    max_entries: 200_000,
    max_ratio: 200,
    ratio_from: 64 * 1024 * 1024
  }

  @spec default_limits() :: map()
  def default_limits, do: @limits

  @doc "What can be told of the file without reading it."
  @spec verify(Path.t(), [option()]) :: :ok | {:error, reason()}
  def verify(path, _options \\ []) do
    with :ok <- check_regular(path), do: check_magic(path)
  end

  @doc """
  Extracts the tarball into the store. The release appears there whole or not at all, and an identical one that is
  there already is taken as it is.
  """
  @spec stage(Path.t(), Store.t(), [option()]) :: {:ok, Release.t()} | {:error, reason()}
  def stage(path, store, options) do
    staging = Store.staging_path(store)

    with :ok <- verify(path),
         {:ok, sha256} <- extract(path, staging, store, options) do
      case admit(staging, sha256, store, options) do
        {:ok, release} ->
          {:ok, release}

        {:error, reason} ->
          :ok = Store.remove(store, staging)
          {:error, reason}
      end
    end
  end

  @doc "What the tarball says of its release. Writes nothing."
  @spec inspect_release(Path.t(), [option()]) :: {:ok, metadata()} | {:error, reason()}
  def inspect_release(path, options \\ []) do
    with :ok <- verify(path),
         {:ok, found} <- Native.archive_inspect(path, limits(options)),
         {:ok, version} <- found_version(found),
         {:ok, rel} <- found_rel(found, version) do
      {:ok,
       %{
         name: rel.name,
         version: version,
         erts_version: rel.erts_version,
         bundled_erts?: "erts-#{rel.erts_version}" in found.runtimes,
         applications: rel.applications,
         binary: found.emulator
       }}
    end
  end

  @doc "The digest of a file, as `sha256:` takes it."
  @spec sha256(Path.t()) :: {:ok, String.t()} | {:error, {:unreadable, File.posix()}}
  def sha256(path) do
    with {:ok, digest} <- File.open(path, [:read], &digest/1),
         {:ok, digest} <- digest do
      {:ok, hex(digest)}
    else
      {:error, posix} -> {:error, {:unreadable, posix}}
    end
  end

  defp digest(device, state \\ :crypto.hash_init(:sha256)) do
    case IO.binread(device, 1024 * 1024) do
      :eof -> {:ok, :crypto.hash_final(state)}
      {:error, posix} -> {:error, posix}
      bytes -> digest(device, :crypto.hash_update(state, bytes))
    end
  end

  defp check_regular(path) do
    case File.stat(path) do
      {:ok, %File.Stat{type: :regular}} -> :ok
      {:ok, %File.Stat{}} -> {:error, :release_not_found}
      {:error, posix} when posix in [:enoent, :enotdir] -> {:error, :release_not_found}
      {:error, posix} -> {:error, {:unreadable, posix}}
    end
  end

  defp check_magic(path) do
    with {:ok, start} <- read_start(path) do
      case start do
        <<0x1F, 0x8B, _rest::binary>> -> :ok
        _other -> {:error, {:extract_failed, "not a gzip file"}}
      end
    end
  end

  defp read_start(path) do
    with {:ok, file} <- :file.open(path, [:read, :raw, :binary]),
         read = :file.read(file, 2),
         :ok <- :file.close(file) do
      case read do
        {:ok, start} -> {:ok, start}
        :eof -> {:ok, ""}
        {:error, posix} -> {:error, {:unreadable, posix}}
      end
    else
      {:error, posix} -> {:error, {:unreadable, posix}}
    end
  end

  @doc "Extracts the tarball into a directory outside of a store, which must not exist yet."
  @spec unpack(Path.t(), Path.t(), [option()]) ::
          {:ok, sha256 :: String.t()} | {:error, reason()}
  def unpack(path, destination, options \\ []) do
    with :ok <- verify(path),
         {:ok, sha256} <- extract_to(path, destination, options[:link_from], options) do
      case check_sha256(sha256, options[:sha256]) do
        :ok ->
          {:ok, sha256}

        {:error, reason} ->
          File.rm_rf!(destination)
          {:error, reason}
      end
    end
  end

  defp extract(path, staging, store, options) do
    link_from = Keyword.get_lazy(options, :link_from, fn -> Store.link_source(store) end)
    extract_to(path, staging, link_from, options)
  end

  defp extract_to(path, staging, link_from, options) do
    case Native.archive_extract(path, staging, link_from, limits(options)) do
      {:ok, %{sha256: digest}} -> {:ok, hex(digest)}
      {:error, reason} -> {:error, blame_checksum(reason, path, options[:sha256])}
    end
  end

  # A file that was damaged on its way fails in many ways. When we were told its digest, that is what to say.
  defp blame_checksum(reason, _path, nil), do: reason

  defp blame_checksum(reason, path, expected) do
    with {:ok, actual} <- sha256(path),
         {:error, mismatch} <- check_sha256(actual, expected) do
      mismatch
    else
      _other -> reason
    end
  end

  defp admit(staging, sha256, store, options) do
    platform = Keyword.get_lazy(options, :platform, &Platform.running/0)

    with :ok <- check_sha256(sha256, options[:sha256]),
         {:ok, release} <- Release.read(staging),
         :ok <- Release.check_app(release, Keyword.fetch!(options, :otp_app)),
         :ok <- Release.check_compatible(release, platform),
         {:ok, release} <- Store.adopt(store, %{release | sha256: sha256}) do
      {:ok, release}
    else
      {:error, posix} when is_atom(posix) -> {:error, {:extract_failed, posix}}
      {:error, reason} -> {:error, reason}
    end
  end

  @doc "Whether a digest is the expected one, where one is."
  @spec check_sha256(String.t(), String.t() | nil) :: :ok | {:error, reason()}
  def check_sha256(_actual, nil), do: :ok

  def check_sha256(actual, expected) do
    if actual == String.downcase(expected),
      do: :ok,
      else: {:error, {:checksum_mismatch, expected, actual}}
  end

  defp found_version(%{start_erl: nil}), do: {:error, {:invalid_release, :not_a_release}}
  defp found_version(%{start_erl: text}), do: Release.parse_start_erl(text)

  defp found_rel(found, version) do
    files = Map.new(found.rel_files)
    directory = Path.join("releases", version)
    paths = files |> Map.keys() |> Enum.filter(&(Path.dirname(&1) == directory))

    with {:ok, path} <- Release.choose_rel(paths, version),
         do: Release.parse_rel(Map.fetch!(files, path), path)
  end

  defp limits(options), do: Map.merge(@limits, Map.new(options[:limits] || %{}))

  defp hex(digest), do: Base.encode16(digest, case: :lower)
end
