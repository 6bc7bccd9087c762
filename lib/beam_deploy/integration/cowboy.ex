defmodule BeamDeploy.Integration.Cowboy do
  @moduledoc false
  # Responsible for: Plug.Cowboy's options (and Ranch's within) for listening on a descriptor.
  # Not for: where the descriptor comes from. Pure.

  alias BeamDeploy.PeerNode.Servers

  @doc "Where Plug.Cowboy listens when no port is given."
  @spec default_port(:http | :https) :: :inet.port_number()
  def default_port(:http), do: 4000
  def default_port(:https), do: 4040

  @doc "Whether the options restrict an IPv6 listener to IPv6; nil leaves it to the system."
  @spec only_v6([term()]) :: boolean() | nil
  def only_v6(options) do
    Enum.find_value(options ++ socket_options(options), fn
      {:ipv6_v6only, value} -> value
      _other -> nil
    end)
  end

  @doc """
  Options for listening on a descriptor. Ranch takes the port from the socket options, where only 0 goes with a
  descriptor, and refuses an address beside one.
  """
  @spec adopt([term()], non_neg_integer(), :inet | :inet6) :: [term()]
  def adopt(options, descriptor, family) do
    options = Enum.reject(options, &bound_option?/1)
    socket = Enum.reject(socket_options(options), &bound_option?/1)

    options
    |> put_socket_options([{:fd, descriptor} | socket])
    |> Keyword.put(:port, 0)
    |> put_family(family)
  end

  @doc "Options for sharing the port with another peer by plain SO_REUSEPORT."
  @spec share([term()]) :: [term()]
  def share(options),
    do: put_socket_options(options, [Servers.reuse_port() | socket_options(options)])

  defp put_family(options, :inet6), do: [:inet6 | options]
  defp put_family(options, :inet), do: options

  defp bound_option?(option) when option in [:inet, :inet6], do: true
  defp bound_option?({name, _value}), do: name in [:ip, :net, :ifaddr, :ipv6_v6only, :port]
  defp bound_option?(_other), do: false

  defp socket_options(options) do
    options
    |> Enum.filter(&is_tuple/1)
    |> get_in([:transport_options, :socket_opts])
    |> List.wrap()
  end

  defp put_socket_options(options, socket) do
    {keyed, bare} = Enum.split_with(options, &is_tuple/1)
    transport = Keyword.put(keyed[:transport_options] || [], :socket_opts, socket)
    bare ++ Keyword.put(keyed, :transport_options, transport)
  end
end
