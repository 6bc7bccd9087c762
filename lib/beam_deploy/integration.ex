defmodule BeamDeploy.Integration do
  @moduledoc false
  # Responsible for: the options of one server, made to listen on the parent's socket.
  # Not for: how a server wants to be told so (one module for each), or where the socket comes from. Pure.

  alias BeamDeploy.Integration.{Bandit, Cowboy}

  @type scheme :: :http | :https
  @type server :: Bandit | Cowboy
  @type address ::
          {:inet.ip_address() | {:local, Path.t()}, :inet.port_number(), boolean() | nil}
  @type acquire ::
          (address() ->
             {:adopt, non_neg_integer(), :inet | :inet6 | :local} | :share | {:error, term()})

  @doc "The options of a server that the user starts, by its own name."
  @spec adopt_server(module(), term(), acquire()) :: {:ok, term()} | {:error, term()}
  def adopt_server(:"Elixir.Bandit", options, acquire),
    do: adopt(Bandit, options, value(options, :scheme, :http), acquire)

  def adopt_server(:"Elixir.ThousandIsland", options, acquire) do
    with {:ok, adopted} <- adopt(Bandit, [thousand_island_options: options], :http, acquire),
         do: {:ok, value(adopted, :thousand_island_options)}
  end

  # Options for Cowboy may stand at the top as well, where they win.
  def adopt_server(:"Elixir.Plug.Cowboy", options, acquire) do
    {own, cowboy} = Keyword.split(options, [:scheme, :plug])
    {nested, cowboy} = Keyword.pop(cowboy, :options, [])

    with {:ok, adopted} <- adopt(Cowboy, cowboy ++ nested, own[:scheme], acquire),
         do: {:ok, own ++ [options: adopted]}
  end

  def adopt_server(:ranch, options, acquire) when is_list(options),
    do: adopt_server(:ranch, %{socket_opts: options}, acquire)

  # Not made drainable: what Ranch serves need not be Cowboy.
  def adopt_server(:ranch, %{socket_opts: socket} = options, acquire) do
    with {:ok, address} <- address(Cowboy, socket, :http),
         {:ok, adopted} <- acquired(Cowboy, socket, acquire.(address)) do
      {:ok, %{options | socket_opts: Cowboy.flatten(adopted)}}
    else
      :unsteerable -> {:ok, options}
      {:error, reason} -> {:error, reason}
    end
  end

  @doc "A server's options with its listener on an acquired descriptor. Some addresses are left to the server."
  @spec adopt(server(), [term()], scheme(), acquire()) :: {:ok, [term()]} | {:error, term()}
  def adopt(server, options, scheme, acquire) do
    case address(server, options, scheme) do
      {:ok, address} ->
        with {:ok, options} <- acquired(server, options, acquire.(address)),
             do: {:ok, server.drainable(options)}

      :unsteerable ->
        {:ok, server.drainable(options)}
    end
  end

  defp acquired(server, options, {:adopt, descriptor, family}),
    do: {:ok, server.adopt(options, descriptor, family)}

  defp acquired(server, options, :share), do: {:ok, server.share(options)}
  defp acquired(_server, _options, {:error, reason}), do: {:error, reason}

  # A port that the system chooses differs from peer to peer anyway, and is nothing that clients know.
  defp address(server, options, scheme) do
    with {:ok, ip} <- ip(server.ip(options), v6?(options)),
         {:ok, port} <- port(ip, server.port(options, scheme)) do
      {:ok, {ip, port, server.only_v6(options)}}
    end
  end

  defp port({:local, _path}, _port), do: {:ok, 0}

  defp port(_ip, port) do
    case port(port) do
      0 -> :unsteerable
      port -> {:ok, port}
    end
  end

  defp v6?(options), do: :inet6 in options or {:net, :inet6} in options

  defp ip(:any, false), do: {:ok, {0, 0, 0, 0}}
  defp ip(:any, true), do: {:ok, {0, 0, 0, 0, 0, 0, 0, 0}}
  defp ip(:loopback, false), do: {:ok, {127, 0, 0, 1}}
  defp ip(:loopback, true), do: {:ok, {0, 0, 0, 0, 0, 0, 0, 1}}
  defp ip(ip, _v6?) when is_tuple(ip) and tuple_size(ip) in [4, 8], do: {:ok, ip}
  defp ip({:local, path}, _v6?), do: {:ok, {:local, path}}
  defp ip(_other, _v6?), do: :unsteerable

  @doc "The value of an option. Unlike Keyword, it takes lists that hold bare atoms such as `:inet6` as well."
  @spec value([term()], atom(), term()) :: term()
  def value(options, name, default \\ nil),
    do: options |> List.keyfind(name, 0, {name, default}) |> elem(1)

  @doc "A port as Phoenix and the servers take it."
  @spec port(:inet.port_number() | String.t() | {:system, String.t()}) :: :inet.port_number()
  def port(port) when is_integer(port), do: port
  def port(port) when is_binary(port), do: String.to_integer(port)
  def port({:system, name}), do: port(System.fetch_env!(name))
end
