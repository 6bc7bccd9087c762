defmodule BeamDeploy.PeerNode.Servers do
  @moduledoc false
  # Responsible for: having the peer's servers listen on the parent's sockets: endpoint configuration before the user's
  # tree starts, and listeners that the user opens alone.
  # Not for: how a server takes a descriptor; one module for each server under `BeamDeploy.Integration` knows that.

  alias BeamDeploy.{Integration, Options, PeerNode}
  alias BeamDeploy.Integration.Phoenix
  alias BeamDeploy.PeerNode.{Descriptors, OwnListeners}

  @doc """
  Adjusts the configuration of the application's endpoints, persistently: `Application.load/1` would otherwise put back
  what the release's files say.
  """
  @spec configure(Options.t()) :: :ok | {:error, term()}
  def configure(%Options{otp_app: app} = options) do
    options.endpoint
    |> endpoints(app)
    |> Enum.reduce_while(:ok, fn endpoint, :ok ->
      case adjust(app, endpoint) do
        :ok -> {:cont, :ok}
        {:error, reason} -> {:halt, {:error, {:listen_failed, endpoint, reason}}}
      end
    end)
  end

  @doc "See `BeamDeploy.PeerNode.keep_listeners/1`."
  @spec keep_listeners(config, Options.t()) :: config when config: [{atom(), keyword()}]
  def keep_listeners(config, %Options{otp_app: app} = options) do
    for endpoint <- endpoints(options.endpoint, app),
        is_list(config[app][endpoint]),
        reduce: config do
      config ->
        running = Application.get_env(app, endpoint, [])
        update_in(config[app][endpoint], &Phoenix.keep_listeners(&1, running))
    end
  end

  defp endpoints(:convention, app), do: Phoenix.conventional_endpoints(app)
  defp endpoints(endpoints, _app), do: endpoints

  defp adjust(app, endpoint) do
    config = Application.get_env(app, endpoint, [])

    with {:ok, adjusted} <- Phoenix.adopt(config, &acquire/1) do
      Application.put_env(app, endpoint, adjusted, persistent: true)
    end
  end

  @doc "What `BeamDeploy.server_options/2` does in a peer."
  @spec options(module(), term()) :: {:ok, term()} | {:error, term()}
  def options(server, options), do: Integration.adopt_server(server, options, &acquire/1)

  @doc "What `BeamDeploy.listen/2` does in a peer."
  @spec listen(:inet.port_number(), [term()]) :: {:ok, :gen_tcp.socket()} | {:error, term()}
  def listen(port, options) do
    with {:ok, address, others} <- split_address(port, options) do
      case acquire(address) do
        {:adopt, descriptor, family} -> open(0, [family, {:fd, descriptor} | others])
        :share -> open(port, [reuse_port() | options])
        {:error, reason} -> {:error, reason}
      end
    else
      :own -> :gen_tcp.listen(port, options)
    end
  end

  defp open(port, options) do
    with {:ok, socket} <- :gen_tcp.listen(port, options) do
      :ok = OwnListeners.remember(socket)
      {:ok, socket}
    end
  end

  # Peers of a parent that was killed end within a moment, and their sockets with them.
  @patience 5_000
  @poll 100

  @doc "A descriptor for an address, with the family that has to be named beside it, or how else to listen."
  @spec acquire(Integration.address()) ::
          {:adopt, non_neg_integer(), :inet | :inet6 | :local} | :share | {:error, term()}
  def acquire(address),
    do: acquire(absolute(address), System.monotonic_time(:millisecond) + @patience)

  defp acquire({ip, _port, _only_v6} = address, deadline) do
    case Descriptors.fetch({:listen, PeerNode.identity().side, address}) do
      {:ok, [descriptor]} -> {:adopt, descriptor, family(ip)}
      :overlap -> :share
      {:error, :eaddrinuse} -> retry(address, deadline)
      {:error, reason} -> {:error, reason}
    end
  end

  defp retry(address, deadline) do
    if System.monotonic_time(:millisecond) < deadline do
      Process.sleep(@poll)
      acquire(address, deadline)
    else
      {:error, :eaddrinuse}
    end
  end

  # The parent's working directory is another.
  defp absolute({{:local, path}, port, only_v6}),
    do: {{:local, path |> IO.chardata_to_string() |> Path.expand()}, port, only_v6}

  defp absolute(address), do: address

  @doc "SO_REUSEPORT by its number: `{reuseport, true}` exists from OTP 26 on only. This form suits every server."
  @spec reuse_port() :: {:raw, {1, 15, <<_::32>>}}
  def reuse_port, do: {:raw, {1, 15, <<1::32-native>>}}

  defp family({:local, _path}), do: :local
  defp family(ip) when tuple_size(ip) == 8, do: :inet6
  defp family(_ip), do: :inet

  # What is fixed when a socket is bound cannot be given with a descriptor. A backlog must be: without one, listening on
  # the shared socket would cut its queue to five.
  @bound_options [:ip, :ifaddr, :ipv6_v6only, :reuseaddr, :reuseport, :inet, :inet6, :local]

  defp split_address(port, options) do
    v6? = :inet6 in options
    {bound, others} = Enum.split_with(options, &(option_name(&1) in @bound_options))
    keyed = Enum.filter(bound, &is_tuple/1)

    with {:ok, ip} <- host(Keyword.get(keyed, :ip, Keyword.get(keyed, :ifaddr, :any)), v6?),
         true <- steerable?(ip, port) do
      {:ok, {ip, port, keyed[:ipv6_v6only]}, put_backlog(others)}
    else
      _other -> :own
    end
  end

  # A port that the system chooses is nothing that clients could go on using.
  defp steerable?({:local, _path}, _port), do: true
  defp steerable?(_ip, port), do: port > 0

  defp host({:local, path}, _v6?), do: {:ok, {:local, path}}
  defp host(ip, _v6?) when is_tuple(ip) and tuple_size(ip) in [4, 8], do: {:ok, ip}
  defp host(:any, v6?), do: {:ok, if(v6?, do: {0, 0, 0, 0, 0, 0, 0, 0}, else: {0, 0, 0, 0})}

  defp host(:loopback, v6?),
    do: {:ok, if(v6?, do: {0, 0, 0, 0, 0, 0, 0, 1}, else: {127, 0, 0, 1})}

  defp host(_other, _v6?), do: :own

  defp put_backlog(options) do
    if Enum.any?(options, &match?({:backlog, _}, &1)),
      do: options,
      else: [{:backlog, 1024} | options]
  end

  defp option_name(option) when is_atom(option), do: option
  defp option_name(option), do: elem(option, 0)
end
