defmodule BeamDeploy.Integration.Phoenix do
  @moduledoc false
  # Responsible for: the configuration of Phoenix endpoints: which serve, with which server, on which addresses.
  # Not for: the servers' own options. Pure but for looking whether a module exists.

  alias BeamDeploy.Integration.{Bandit, Cowboy}

  @schemes [:http, :https]

  @type address :: {:inet.ip_address(), :inet.port_number(), boolean() | nil}
  @type acquire ::
          (address() -> {:adopt, non_neg_integer(), :inet | :inet6} | :share | {:error, term()})

  @doc "The endpoint that Phoenix generates for an application, if it exists: `MyAppWeb.Endpoint`."
  @spec conventional_endpoints(atom()) :: [module()]
  def conventional_endpoints(app) do
    endpoint = Module.concat(Macro.camelize(Atom.to_string(app)) <> "Web", "Endpoint")
    if Code.ensure_loaded?(endpoint), do: [endpoint], else: []
  end

  @doc "An endpoint's configuration with its listeners on acquired descriptors; unchanged where it does not serve."
  @spec adopt(keyword(), acquire()) :: {:ok, keyword()} | {:error, term()}
  def adopt(config, acquire) do
    case serves?(config) and server(config) do
      false -> {:ok, config}
      server -> adopt_schemes(config, server, acquire)
    end
  end

  defp serves?(config),
    do:
      Keyword.get_lazy(config, :server, fn ->
        Application.get_env(:phoenix, :serve_endpoints, false)
      end)

  defp server(config) do
    case Keyword.get(config, :adapter, Phoenix.Endpoint.Cowboy2Adapter) do
      Bandit.PhoenixAdapter -> Bandit
      Phoenix.Endpoint.Cowboy2Adapter -> Cowboy
      _other -> false
    end
  end

  defp adopt_schemes(config, server, acquire) do
    Enum.reduce_while(@schemes, {:ok, keep_url(config)}, fn scheme, {:ok, config} ->
      with options when is_list(options) <- config[scheme],
           {:ok, address} <- address(server, options, scheme),
           {:ok, adopted} <- adopt_options(server, options, acquire.(address)) do
        {:cont, {:ok, Keyword.put(config, scheme, adopted)}}
      else
        not_served when not_served in [nil, false, :unsteerable] -> {:cont, {:ok, config}}
        {:error, reason} -> {:halt, {:error, {scheme, reason}}}
      end
    end)
  end

  defp adopt_options(server, options, {:adopt, descriptor, family}),
    do: {:ok, server.adopt(options, descriptor, family)}

  defp adopt_options(server, options, :share), do: {:ok, server.share(options)}
  defp adopt_options(_server, _options, {:error, reason}), do: {:error, reason}

  # A port that the system chooses differs from peer to peer anyway, and is nothing that clients know.
  defp address(server, options, scheme) do
    with port when port > 0 <- port(options[:port] || server.default_port(scheme)),
         {:ok, ip} <- ip(options[:ip], v6?(options)) do
      {:ok, {ip, port, server.only_v6(options)}}
    else
      _other -> :unsteerable
    end
  end

  defp v6?(options), do: :inet6 in options or options[:net] == :inet6

  defp ip(nil, v6?), do: ip(:any, v6?)
  defp ip(:any, false), do: {:ok, {0, 0, 0, 0}}
  defp ip(:any, true), do: {:ok, {0, 0, 0, 0, 0, 0, 0, 0}}
  defp ip(:loopback, false), do: {:ok, {127, 0, 0, 1}}
  defp ip(:loopback, true), do: {:ok, {0, 0, 0, 0, 0, 0, 0, 1}}
  defp ip(ip, _v6?) when is_tuple(ip) and tuple_size(ip) in [4, 8], do: {:ok, ip}
  defp ip(_other, _v6?), do: :unsteerable

  # Phoenix takes the port of its URLs from the listener where `url:` has none. A listener that adopts a descriptor
  # may have to say port 0, so the one it had is written down first.
  defp keep_url(config) do
    port =
      get_in(config, [:url, :port]) || listener_port(config[:https], 443) ||
        listener_port(config[:http], 80)

    if port,
      do: Keyword.update(config, :url, [port: port], &Keyword.put(&1, :port, port)),
      else: config
  end

  defp listener_port(options, default) when is_list(options), do: options[:port] || default
  defp listener_port(_none, _default), do: nil

  defp port(port) when is_integer(port), do: port
  defp port(port) when is_binary(port), do: String.to_integer(port)
  defp port({:system, name}), do: port(System.fetch_env!(name))
end
