defmodule BeamDeploy.Integration.Cowboy do
  @moduledoc false
  # Responsible for: Plug.Cowboy's options (and Ranch's within) for listening on a descriptor and for draining.
  # Not for: where the descriptor comes from. Pure but for looking whether a module exists.

  import BeamDeploy.Integration, only: [value: 2]

  alias BeamDeploy.Integration.CowboyStream
  alias BeamDeploy.PeerNode.Servers

  @default_ports [http: 4000, https: 4040]

  @doc "The port that Plug.Cowboy would listen on."
  @spec port([term()], :http | :https) :: term()
  def port(options, scheme) do
    value(socket_options(options), :port) || value(options, :port) || @default_ports[scheme]
  end

  @doc "The address that Plug.Cowboy would listen on."
  @spec ip([term()]) :: term()
  def ip(options), do: value(socket_options(options), :ip) || value(options, :ip) || :any

  @doc "Whether the options restrict an IPv6 listener to IPv6; nil leaves it to the system."
  @spec only_v6([term()]) :: boolean() | nil
  def only_v6(options), do: value(options ++ socket_options(options), :ipv6_v6only)

  @doc """
  Options for listening on a descriptor. Ranch takes the port from the socket options, where only 0 goes with a
  descriptor, and refuses an address beside one.
  """
  @spec adopt([term()], non_neg_integer(), :inet | :inet6 | :local) :: [term()]
  def adopt(options, descriptor, family) do
    options = Enum.reject(options, &bound_option?/1)
    socket = Enum.reject(socket_options(options), &bound_option?/1)

    options
    |> put_socket_options([{:fd, descriptor} | socket])
    |> put(:port, 0)
    |> put_family(family)
  end

  @doc "Options for sharing the port with another peer by plain SO_REUSEPORT."
  @spec share([term()]) :: [term()]
  def share(options),
    do: put_socket_options(options, [Servers.reuse_port() | socket_options(options)])

  @doc "The same for Ranch alone, where all of them are socket options."
  @spec flatten([term()]) :: [term()]
  def flatten(options) do
    {[{:transport_options, transport}], others} =
      Enum.split_with(options, &match?({:transport_options, _}, &1))

    others ++ value(transport, :socket_opts)
  end

  @doc """
  Options with a stream handler that announces the end of connections while the node drains, before all others, and
  without Cowboy's limit of three seconds for the requests of an HTTP/2 connection that is told to go.
  """
  @spec drainable([term()]) :: [term()]
  def drainable(options) do
    protocol =
      Keyword.put_new(
        value(options, :protocol_options) || [],
        :goaway_complete_timeout,
        :infinity
      )

    options
    |> put(:stream_handlers, [CowboyStream | stream_handlers(options)])
    |> put(:protocol_options, protocol)
    |> Enum.reject(&match?({:compress, _}, &1))
  end

  # Plug.Cowboy's own choice: with `:compress` it refuses a list of handlers, without one it makes this.
  defp stream_handlers(options) do
    cond do
      handlers = value(options, :stream_handlers) -> handlers
      value(options, :compress) -> [:cowboy_compress_h | default_handlers()]
      true -> default_handlers()
    end
  end

  defp default_handlers do
    if Code.ensure_loaded?(:cowboy_telemetry_h),
      do: [:cowboy_telemetry_h, :cowboy_stream_h],
      else: [:cowboy_stream_h]
  end

  defp put_family(options, :inet6), do: [:inet6 | options]
  defp put_family(options, :inet), do: options

  # Plug.Cowboy does not know it, Ranch does.
  defp put_family(options, :local),
    do: put_socket_options(options, [:local | socket_options(options)])

  defp bound_option?(option) when option in [:inet, :inet6, :local], do: true
  defp bound_option?({name, _value}), do: name in [:ip, :net, :ifaddr, :ipv6_v6only, :port]
  defp bound_option?(_other), do: false

  defp socket_options(options),
    do: value(value(options, :transport_options) || [], :socket_opts) || []

  defp put_socket_options(options, socket) do
    transport = Keyword.put(value(options, :transport_options) || [], :socket_opts, socket)
    put(options, :transport_options, transport)
  end

  # The options may hold bare atoms, which Keyword does not take.
  defp put(options, name, value),
    do: Enum.reject(options, &match?({^name, _}, &1)) ++ [{name, value}]
end
