defmodule BeamDeploy.PeerNode do
  @moduledoc false
  # Responsible for: what a peer does for itself, from its first step in the boot script to the user's tree.
  # Not for: why it was started, or what becomes of it; that is the parent's.

  alias BeamDeploy.{Options, Remote}
  alias BeamDeploy.PeerNode.{Console, Preload, Servers, Tree}

  @key {__MODULE__, :identity}
  @options {__MODULE__, :options}

  @type identity :: %{
          parent: node(),
          side: :blue | :green,
          outgoing: node() | nil,
          incoming: node() | nil,
          socket: Path.t(),
          output: Path.t()
        }

  @doc """
  The instruction that `BeamDeploy.Release.Boot` puts into the boot script. An exception here ends the VM with a
  message that names it, as any instruction of a boot script does.
  """
  @spec boot() :: :ok
  def boot do
    identity = take_identity()
    :persistent_term.put(@key, identity)
    :ok = Console.take_over()
    set_cookie()
    configure_once()
    connect(identity.parent)
    meet(identity.outgoing)
    Preload.run(take("BEAM_DEPLOY_PRELOAD"))
  end

  @doc "The identity of this peer, nil on every other node."
  @spec identity() :: identity() | nil
  def identity, do: :persistent_term.get(@key, nil)

  @doc "Remembers the other node of a swap, or that it is gone."
  @spec put_counterpart(:incoming | :outgoing, node() | nil) :: :ok
  def put_counterpart(role, node) when role in [:incoming, :outgoing] do
    :persistent_term.put(@key, Map.replace!(identity(), role, node))
  end

  @doc "Starts the user's tree with endpoints that listen on the parent's sockets."
  @spec start_app(Options.t()) :: Supervisor.on_start()
  def start_app(%Options{} = options) do
    :persistent_term.put(@options, options)

    with :ok <- check_parent(identity().parent),
         :ok <- Servers.configure(options) do
      Tree.start_link(options)
    end
  end

  @doc "Calls the function of an option, with these arguments before its own; the default where there is none."
  @spec run_hook(atom(), [term()], term()) :: term()
  def run_hook(name, arguments, default) do
    case Map.fetch!(:persistent_term.get(@options), name) do
      nil -> default
      {module, function, own} -> apply(module, function, arguments ++ own)
    end
  end

  @doc """
  A configuration that is about to replace the one in use, with the endpoints' listeners as they are: in a peer they are
  on the parent's sockets, and an endpoint that starts again has to find them there.
  """
  @spec keep_listeners(config) :: config when config: [{atom(), keyword()}]
  def keep_listeners(config) do
    if identity(),
      do: Servers.keep_listeners(config, :persistent_term.get(@options)),
      else: config
  end

  # Read once and removed, so that a program which the app starts is not taken for a peer.
  defp take_identity do
    %{
      parent: String.to_atom(take("BEAM_DEPLOY_PARENT")),
      side: String.to_atom(take("BEAM_DEPLOY_SIDE")),
      outgoing: take_node("BEAM_DEPLOY_OUTGOING"),
      incoming: nil,
      socket: take("BEAM_DEPLOY_SOCKET"),
      output: take("BEAM_DEPLOY_OUTPUT")
    }
  end

  defp take_node(name) do
    case System.get_env(name) do
      nil -> nil
      _set -> String.to_atom(take(name))
    end
  end

  defp take(name) do
    value = System.fetch_env!(name)
    System.delete_env(name)
    value
  end

  defp set_cookie do
    # Refused, the cookie would be part of what the VM says as it ends.
    unless Node.alive?(), do: raise("a peer of BeamDeploy has started without distribution")
    "RELEASE_COOKIE" |> System.fetch_env!() |> String.to_atom() |> Node.set_cookie()
  end

  # Releases with `reboot_system_after_config` boot once more when their config providers have run. The VM of a peer boots
  # once: it goes on with what they have answered, as other releases do. What providers then say of kernel comes too late,
  # which Elixir refuses; that distribution is to start is what `mix release` adds itself, and it has started.
  defp configure_once do
    case Application.fetch_env(:elixir, :config_provider_init) do
      {:ok, %{reboot_system_after_config: true, extra_config: extra} = provider} ->
        provider = %{
          provider
          | reboot_system_after_config: false,
            extra_config: Keyword.delete(extra, :kernel)
        }

        Application.put_env(:elixir, :config_provider_init, provider)

      _reboots_not ->
        :ok
    end
  end

  # Hidden, so that the parent is no member of the cluster that peers and other hosts may form. When a member is gone, OTP's
  # `global` has the others tell each other. The parent has nothing else to do, so its word came to the incoming peer
  # before that had noticed the outgoing one's end itself, and `global` warned of "overlapping partitions", at every
  # second swap or so.
  defp connect(parent) do
    unless :net_kernel.hidden_connect_node(parent) == true,
      do: raise("a peer of BeamDeploy cannot reach its parent #{parent}")
  end

  # Both peers of a swap are members, so that what is broadcast in one reaches the other. Without waiting: the
  # outgoing one may be frozen.
  defp meet(nil), do: :ok

  defp meet(outgoing) do
    if connect_all?(), do: spawn(Node, :connect, [outgoing])
    :ok
  end

  # A release may say that its nodes connect only where they are told to.
  defp connect_all? do
    :init.get_argument(:connect_all) != {:ok, [[~c"false"]]} and
      Application.get_env(:kernel, :connect_all, true)
  end

  # The first exchange with a parent that may be older or newer: the functions of version 1 are in all.
  defp check_parent(parent) do
    case :erpc.call(parent, Remote, :version, []) do
      version when version >= 1 -> :ok
    end
  end
end
