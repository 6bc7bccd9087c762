defmodule BeamDeploy.Integration.Phoenix do
  @moduledoc false
  # Responsible for: the configuration of Phoenix endpoints: which serve, with which server, under which URLs.
  # Not for: the servers' own options. Pure but for looking whether a module exists.

  alias BeamDeploy.Integration

  @schemes [:http, :https]

  # By their full names: `Bandit` alone is the integration's here.
  @adapters %{
    :"Elixir.Bandit.PhoenixAdapter" => Integration.Bandit,
    :"Elixir.Phoenix.Endpoint.Cowboy2Adapter" => Integration.Cowboy
  }
  @default_adapter :"Elixir.Phoenix.Endpoint.Cowboy2Adapter"

  @doc "The endpoint that Phoenix generates for an application, if it exists: `MyAppWeb.Endpoint`."
  @spec conventional_endpoints(atom()) :: [module()]
  def conventional_endpoints(app) do
    endpoint = Module.concat(Macro.camelize(Atom.to_string(app)) <> "Web", "Endpoint")
    if Code.ensure_loaded?(endpoint), do: [endpoint], else: []
  end

  @doc "An endpoint's configuration with its listeners on acquired descriptors; unchanged where it does not serve."
  @spec adopt(keyword(), Integration.acquire()) :: {:ok, keyword()} | {:error, term()}
  def adopt(config, acquire) do
    adapter = Keyword.get(config, :adapter, @default_adapter)

    case serves?(config) && @adapters[adapter] do
      server when server in [nil, false] -> {:ok, config}
      server -> adopt_schemes(config, server, acquire)
    end
  end

  @doc "Another configuration of the endpoint with the listeners, and the port of the URLs, of the one that `adopt/2` made."
  @spec keep_listeners(keyword(), keyword()) :: keyword()
  def keep_listeners(config, adopted) do
    config = Keyword.merge(config, Keyword.take(adopted, @schemes))

    case get_in(adopted, [:url, :port]) do
      nil -> config
      port -> Keyword.update(config, :url, [port: port], &Keyword.put_new(&1, :port, port))
    end
  end

  defp serves?(config),
    do:
      Keyword.get_lazy(config, :server, fn ->
        Application.get_env(:phoenix, :serve_endpoints, false)
      end)

  defp adopt_schemes(config, server, acquire) do
    Enum.reduce_while(@schemes, {:ok, keep_url(config)}, fn scheme, {:ok, config} ->
      with options when is_list(options) <- config[scheme],
           {:ok, adopted} <- Integration.adopt(server, options, scheme, acquire) do
        {:cont, {:ok, Keyword.put(config, scheme, adopted)}}
      else
        not_served when not_served in [nil, false] -> {:cont, {:ok, config}}
        {:error, reason} -> {:halt, {:error, {scheme, reason}}}
      end
    end)
  end

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

  defp listener_port(options, default) when is_list(options),
    do: Integration.value(options, :port) || default

  defp listener_port(_none, _default), do: nil
end
