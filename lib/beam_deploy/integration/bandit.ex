defmodule BeamDeploy.Integration.Bandit do
  @moduledoc false
  # Responsible for: Bandit's options, and Thousand Island's within, for listening on a descriptor.
  # Not for: where the descriptor comes from. Pure.

  import BeamDeploy.Integration, only: [value: 2]

  alias BeamDeploy.PeerNode.Servers

  @default_ports [http: 4000, https: 4040]

  @doc "The port that Bandit would listen on. What Thousand Island is given wins."
  @spec port([term()], :http | :https) :: term()
  def port(options, scheme),
    do: value(thousand_island(options), :port) || value(options, :port) || @default_ports[scheme]

  @doc "The address that Bandit would listen on."
  @spec ip([term()]) :: term()
  def ip(options) do
    value(transport(options), :ip) || value(transport(options), :ifaddr) || value(options, :ip) ||
      :any
  end

  @doc "Whether the options restrict an IPv6 listener to IPv6; nil leaves it to the system."
  @spec only_v6([term()]) :: boolean() | nil
  def only_v6(options), do: value(transport(options), :ipv6_v6only)

  @doc """
  Options for listening on a descriptor. The port stays where Phoenix reads it; Thousand Island is given 0 below, because
  a descriptor is bound already, for which reason an address is refused as well.
  """
  @spec adopt([term()], non_neg_integer(), :inet | :inet6 | :local) :: [term()]
  def adopt(options, descriptor, family) do
    options
    |> Enum.reject(&bound_option?/1)
    |> update_thousand_island(fn thousand_island ->
      thousand_island
      |> Keyword.put(:port, 0)
      # One queue: several sockets for one server would each need a descriptor of their own.
      |> Keyword.delete(:num_listen_sockets)
      |> Keyword.update(:transport_options, [family, fd: descriptor], fn transport ->
        [family, {:fd, descriptor} | Enum.reject(transport, &bound_option?/1)]
      end)
    end)
  end

  @doc "Options for sharing the port with another peer by plain SO_REUSEPORT."
  @spec share([term()]) :: [term()]
  def share(options) do
    update_thousand_island(options, fn thousand_island ->
      Keyword.update(
        thousand_island,
        :transport_options,
        [Servers.reuse_port()],
        &[Servers.reuse_port() | &1]
      )
    end)
  end

  @doc "Bandit's connections are made to drain when they do; nothing has to be prepared."
  @spec drainable([term()]) :: [term()]
  def drainable(options), do: options

  defp bound_option?(option) when option in [:inet, :inet6, :local], do: true

  defp bound_option?({name, _value}),
    do: name in [:ip, :net, :ifaddr, :ipv6_v6only, :reuseport, :reuseport_lb]

  defp bound_option?(_other), do: false

  defp thousand_island(options), do: value(options, :thousand_island_options) || []
  defp transport(options), do: value(thousand_island(options), :transport_options) || []

  defp update_thousand_island(options, update) do
    List.keystore(
      options,
      :thousand_island_options,
      0,
      {:thousand_island_options, options |> thousand_island() |> update.()}
    )
  end
end
