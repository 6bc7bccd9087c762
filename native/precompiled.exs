defmodule BeamDeploy.MixProject.Precompiled do
  @moduledoc false
  # Responsible for: which precompiled library suits this machine, where the project's releases offer it, and that what
  # comes from there is what the package's checksum.exs names.
  # Not for: building a library, or putting one into place.

  # The crate asks for no newer functions of the VM, so that one library serves every later version (see Cargo.toml).
  @nif_version {2, 15}
  @targets for(
             arch <- ~w(x86_64 aarch64),
             system <- ~w(unknown-linux-gnu unknown-linux-musl apple-darwin),
             do: "#{arch}-#{system}"
           )

  @type offer :: %{name: String.t(), url: String.t(), sha256: String.t()}

  @doc "The targets that a release offers libraries for."
  @spec targets() :: [String.t()]
  def targets, do: @targets

  @doc "What the library for a target is called."
  @spec name(String.t(), String.t()) :: String.t()
  def name(version, target) do
    {major, minor} = @nif_version
    "beam_deploy_nif-v#{version}-nif-#{major}.#{minor}-#{target}.so.gz"
  end

  @doc "What to download, or why there is nothing to: `{:build, nil}` where that is as it should be."
  @spec offer(Path.t(), String.t(), String.t()) :: {:ok, offer()} | {:build, String.t() | nil}
  def offer(root, version, source_url) do
    with :ok <- wanted(version),
         {:ok, checksums} <- checksums(root),
         {:ok, target} <- target(),
         name = name(version, target),
         {:ok, sha256} <- checksum(checksums, name),
         do:
           {:ok, %{name: name, url: base_url(version, source_url) <> "/" <> name, sha256: sha256}}
  end

  defp wanted(version) do
    forced? = System.get_env("BEAM_DEPLOY_BUILD") in ["1", "true"]

    # No release page has what is still under development.
    if forced? or Version.parse!(version).pre != [], do: {:build, nil}, else: :ok
  end

  # Only packages have checksums: a checkout is built from its own sources.
  defp checksums(root) do
    path = Path.join(root, "checksum.exs")

    if File.regular?(path) do
      {checksums, _bindings} = Code.eval_file(path)
      {:ok, checksums}
    else
      {:build, nil}
    end
  end

  defp target do
    architecture = List.to_string(:erlang.system_info(:system_architecture))
    target = target(architecture)

    cond do
      target not in @targets -> {:build, "none is made for #{architecture}"}
      nif_version() < @nif_version -> {:build, "this Erlang/OTP is too old for them"}
      true -> {:ok, target}
    end
  end

  @doc """
  The name that Rust has for what `:erlang.system_info(:system_architecture)` says. The vendor in it depends on who built
  the VM: `x86_64-pc-linux-gnu` on Debian, `x86_64-alpine-linux-musl` on Alpine.
  """
  @spec target(String.t()) :: String.t() | nil
  def target(architecture) do
    case String.split(architecture, "-") do
      [arch, _vendor, "linux", abi] -> "#{arch(arch)}-unknown-linux-#{abi}"
      [arch, "apple", "darwin" <> _release] -> "#{arch(arch)}-apple-darwin"
      _other -> nil
    end
  end

  defp arch("arm64"), do: "aarch64"
  defp arch("amd64"), do: "x86_64"
  defp arch(arch), do: arch

  defp nif_version do
    [major, minor] = :erlang.system_info(:nif_version) |> List.to_string() |> String.split(".")

    {String.to_integer(major), String.to_integer(minor)}
  end

  defp checksum(checksums, name) do
    case checksums do
      %{^name => "sha256:" <> sha256} -> {:ok, sha256}
      _other -> {:build, "checksum.exs does not name #{name}"}
    end
  end

  defp base_url(version, source_url) do
    "BEAM_DEPLOY_PRECOMPILED_URL"
    |> System.get_env("#{source_url}/releases/download/v#{version}")
    |> String.trim_trailing("/")
  end

  @doc """
  Downloads the library. What cannot be had is left to a build; what is not what the package was published with is refused.
  """
  @spec fetch(offer()) :: {:ok, binary()} | {:build, String.t()} | {:refused, String.t()}
  def fetch(%{url: url, sha256: expected}) do
    with {:ok, body} <- get(url) do
      case :crypto.hash(:sha256, body) |> Base.encode16(case: :lower) do
        ^expected -> {:ok, :zlib.gunzip(body)}
        actual -> {:refused, refused(url, expected, actual)}
      end
    end
  end

  defp refused(url, expected, actual) do
    """
    beam_deploy: #{url} has the SHA-256 #{actual}, not #{expected}, and was not used.
    Tell the maintainers; BEAM_DEPLOY_BUILD=1 builds the library from its sources with Rust instead.\
    """
  end

  defp get(url) do
    with :ok <- start_client(),
         {:ok, options} <- tls_options(url) do
      request = {String.to_charlist(url), [{~c"user-agent", ~c"beam_deploy"}]}
      http = [timeout: 120_000, connect_timeout: 15_000] ++ options

      case :httpc.request(:get, request, http, [body_format: :binary], :beam_deploy) do
        {:ok, {{_version, 200, _phrase}, _headers, body}} -> {:ok, body}
        {:ok, {{_version, status, _phrase}, _, _}} -> {:build, "#{url} answered #{status}"}
        {:error, reason} -> {:build, "#{url} cannot be reached (#{inspect(reason)})"}
      end
    end
  end

  # A profile of our own: the proxy is not for what else runs in this VM.
  defp start_client do
    # From Elixir 1.15 on, a compiler sees only the applications that its project names.
    if function_exported?(Mix, :ensure_application!, 1),
      do: Enum.each([:inets, :ssl], &apply(Mix, :ensure_application!, [&1]))

    with {:ok, _started} <- Application.ensure_all_started(:inets),
         {:ok, _started} <- Application.ensure_all_started(:ssl) do
      case :inets.start(:httpc, profile: :beam_deploy) do
        {:ok, _pid} -> :httpc.set_options(proxies(), :beam_deploy)
        {:error, {:already_started, _pid}} -> :ok
      end
    else
      {:error, {application, _reason}} ->
        {:build, "Erlang's application #{application} is not installed"}
    end
  end

  defp proxies do
    for {option, names} <- [
          proxy: ["HTTP_PROXY", "http_proxy"],
          https_proxy: ["HTTPS_PROXY", "https_proxy"]
        ],
        url when url not in [nil, ""] <- [Enum.find_value(names, &System.get_env/1)],
        %URI{host: host, port: port} when host not in [nil, ""] <- [URI.parse(url)],
        do: {option, {{String.to_charlist(host), port || 80}, [~c"localhost", ~c"127.0.0.1"]}}
  end

  defp tls_options("https:" <> _rest) do
    case :public_key.cacerts_load() do
      :ok ->
        check = [match_fun: :public_key.pkix_verify_hostname_match_fun(:https)]

        {:ok,
         [
           ssl: [
             verify: :verify_peer,
             cacerts: :public_key.cacerts_get(),
             depth: 4,
             customize_hostname_check: check
           ]
         ]}

      {:error, reason} ->
        {:build, "no CA certificates were found on this machine (#{inspect(reason)})"}
    end
  end

  defp tls_options(_plain), do: {:ok, []}
end
