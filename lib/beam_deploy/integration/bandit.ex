defmodule BeamDeploy.Integration.Bandit do
  @moduledoc false
  # Responsible for: Bandit's options (and Thousand Island's within) for listening on a descriptor.
  # Not for: where the descriptor comes from. Pure.

  alias BeamDeploy.PeerNode.Servers

  @doc "Where Bandit listens when no port is given."
  @spec default_port(:http | :https) :: :inet.port_number()
  def default_port(:http), do: 4000
  def default_port(:https), do: 4040

  @doc "Whether the options restrict an IPv6 listener to IPv6; nil leaves it to the system."
  @spec only_v6(keyword()) :: boolean() | nil
  def only_v6(options), do: options |> transport_options() |> option(:ipv6_v6only)

  @doc """
  Options for listening on a descriptor. The port stays where Phoenix reads it; Thousand Island is given 0 below, because
  a descriptor is bound already, for which reason an address is refused as well.
  """
  @spec adopt([term()], non_neg_integer(), :inet | :inet6) :: [term()]
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

  defp bound_option?(option) when option in [:inet, :inet6], do: true

  defp bound_option?({name, _value}),
    do: name in [:ip, :net, :ifaddr, :ipv6_v6only, :reuseport, :reuseport_lb]

  defp bound_option?(_other), do: false

  defp transport_options(options),
    do: get_in(options, [:thousand_island_options, :transport_options]) || []

  defp option(options, name),
    do: Enum.find_value(options, &(match?({^name, _}, &1) && elem(&1, 1)))

  defp update_thousand_island(options, update),
    do:
      List.keystore(
        options,
        :thousand_island_options,
        0,
        {:thousand_island_options, update.(options[:thousand_island_options] || [])}
      )
end
