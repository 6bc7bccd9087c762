defmodule BeamDeploy.Release.Boot do
  @moduledoc false
  # Responsible for: what has to be run to boot a release as a peer: executable, arguments, environment, boot script.
  # Not for: running it. Everything here is pure.

  alias BeamDeploy.Release

  # bin/NAME sets these to a default inside its release when the operator has not set them, and exports them. A peer
  # of another release must not inherit such a default; what the operator chose it must.
  @defaults %{
    "RELEASE_MODE" => "embedded",
    "RELEASE_TMP" => "tmp",
    "RELEASE_VM_ARGS" => "releases/VSN/vm.args",
    "RELEASE_REMOTE_VM_ARGS" => "releases/VSN/remote.vm.args",
    "RELEASE_BOOT_SCRIPT" => "start",
    "RELEASE_BOOT_SCRIPT_CLEAN" => "start_clean"
  }

  # Set by the parent's own `erl`, whose runtime system need not be the peer's.
  @runtime_system ~w(BINDIR ROOTDIR EMU PROGNAME ERL_ROOTDIR)

  # The node starts without a cookie rather than with one read from, or written to, the home directory; and with its
  # distribution, which the sys.config of a release with `reboot_system_after_config` turns off until the reboot.
  @arguments [~c"-nocookie", ~c"-kernel", ~c"start_distribution", ~c"true"]

  @hook {:apply, {BeamDeploy.PeerNode, :boot, []}}

  @type peer :: %{
          node: node(),
          long_names?: boolean(),
          listens?: boolean(),
          parent: node(),
          side: :blue | :green,
          outgoing: node() | nil,
          # A file that holds it.
          cookie: Path.t(),
          socket: Path.t(),
          boot: Path.t(),
          output: Path.t(),
          preload: Path.t()
        }

  @doc """
  The executable with its first arguments, further arguments for the VM, and changes to the parent's environment,
  in the form that `:peer` takes. `base` is the parent's own release, `environment` its environment.
  """
  @spec command(Release.t(), peer(), Release.t(), %{String.t() => String.t()}) :: %{
          exec: {charlist(), [charlist()]},
          args: [charlist()],
          env: [{charlist(), charlist() | false}]
        }
  def command(%Release{} = release, peer, %Release{} = base, environment) do
    script = Application.app_dir(:beam_deploy, "priv/start_peer.sh")

    %{
      exec: {~c"/bin/sh", [String.to_charlist(script)]},
      args: @arguments ++ if(peer.listens?, do: [], else: [~c"-dist_listen", ~c"false"]),
      env: to_port(dropped(base, environment) ++ given(release, peer, environment))
    }
  end

  @doc """
  Adds the peer's first step to a release's boot script: after kernel and stdlib are started, before the config
  providers and all other applications.
  """
  @spec boot_script(binary()) :: {:ok, binary()} | {:error, {:invalid_release, term()}}
  def boot_script(boot_file) do
    with {:ok, {:script, id, instructions}} <- decode(boot_file),
         {before, [_ | _] = rest} <- Enum.split_while(instructions, &(not starts_stdlib?(&1))) do
      [stdlib | rest] = rest
      {:ok, :erlang.term_to_binary({:script, id, before ++ [stdlib, @hook | rest]})}
    else
      _other -> {:error, {:invalid_release, :boot_script}}
    end
  end

  defp decode(binary) do
    {:ok, :erlang.binary_to_term(binary)}
  rescue
    ArgumentError -> :error
  end

  defp starts_stdlib?({:apply, {:application, :start_boot, [:stdlib | _type]}}), do: true
  defp starts_stdlib?(_instruction), do: false

  defp dropped(base, environment) do
    defaults =
      for {name, default} <- @defaults,
          environment[name] in [default, in_release(base, default)],
          do: {name, nil}

    # bin/NAME gives sys.config either as the release's own or as a copy in RELEASE_TMP.
    own_config = in_release(base, "releases/VSN/sys")
    config = environment["RELEASE_SYS_CONFIG"]

    config =
      if config == own_config or String.ends_with?(config || "", ".runtime"),
        do: [{"RELEASE_SYS_CONFIG", nil}],
        else: []

    Enum.map(@runtime_system, &{&1, nil}) ++ defaults ++ config
  end

  defp in_release(release, path),
    do: Path.join(release.root, String.replace(path, "VSN", release.version))

  defp given(release, peer, environment) do
    [
      {"RELEASE_ROOT", release.root},
      {"RELEASE_NAME", release.name},
      {"RELEASE_VSN", release.version},
      {"RELEASE_COMMAND", "start"},
      {"RELEASE_PROG", environment["RELEASE_PROG"] || release.name},
      {"RELEASE_NODE", Atom.to_string(peer.node)},
      {"RELEASE_DISTRIBUTION", if(peer.long_names?, do: "name", else: "sname")},
      {"BEAM_DEPLOY_PARENT", Atom.to_string(peer.parent)},
      {"BEAM_DEPLOY_SIDE", Atom.to_string(peer.side)},
      {"BEAM_DEPLOY_OUTGOING", peer.outgoing && Atom.to_string(peer.outgoing)},
      {"BEAM_DEPLOY_SOCKET", peer.socket},
      {"BEAM_DEPLOY_COOKIE", peer.cookie},
      {"BEAM_DEPLOY_BOOT", peer.boot},
      {"BEAM_DEPLOY_OUTPUT", peer.output},
      {"BEAM_DEPLOY_PRELOAD", peer.preload}
    ]
  end

  defp to_port(environment) do
    for {name, value} <- environment,
        do: {String.to_charlist(name), if(value, do: String.to_charlist(value), else: false)}
  end
end
