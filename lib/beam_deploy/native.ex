defmodule BeamDeploy.Native do
  @moduledoc false
  # Stubs of the functions that native/beam_deploy_nif implements, nothing else. One Elixir module owns each
  # group; nobody else calls it.

  @on_load :load

  @doc false
  def load do
    path = Application.app_dir(:beam_deploy, "priv/native/beam_deploy_nif")
    :erlang.load_nif(String.to_charlist(path), 0)
  end

  # src/socket.rs, owner BeamDeploy.BlueGreen.Listener
  def listener_open_inet(_ip, _port, _only_v6, _backlog, _alone, _first),
    do: :erlang.nif_error(:nif_not_loaded)

  def listener_open_local(_path, _backlog), do: :erlang.nif_error(:nif_not_loaded)
  def listener_close(_pair), do: :erlang.nif_error(:nif_not_loaded)
  def listener_descriptor(_pair, _side), do: :erlang.nif_error(:nif_not_loaded)
  def listener_port(_pair), do: :erlang.nif_error(:nif_not_loaded)
  def listener_steer(_pair, _side), do: :erlang.nif_error(:nif_not_loaded)
  def listener_queue(_pair, _side), do: :erlang.nif_error(:nif_not_loaded)
  def listener_discard(_pair, _side), do: :erlang.nif_error(:nif_not_loaded)
  def handshakes(_v6, _ports, _youngest, _oldest), do: :erlang.nif_error(:nif_not_loaded)

  # src/process.rs, owners BeamDeploy.PeerNode.Console and BeamDeploy.BlueGreen.Peer
  def redirect(_target, _descriptor), do: :erlang.nif_error(:nif_not_loaded)
  def close_on_exec(_descriptor), do: :erlang.nif_error(:nif_not_loaded)
  def close_descriptor(_descriptor), do: :erlang.nif_error(:nif_not_loaded)
  def kill(_os_pid), do: :erlang.nif_error(:nif_not_loaded)

  # src/archive.rs, owner BeamDeploy.Release.Archive
  def archive_extract(_archive, _destination, _previous, _limits),
    do: :erlang.nif_error(:nif_not_loaded)

  def archive_inspect(_archive, _limits), do: :erlang.nif_error(:nif_not_loaded)

  # src/elf.rs, owner BeamDeploy.Release.Platform
  def elf_facts(_path), do: :erlang.nif_error(:nif_not_loaded)

  # src/files.rs, owners BeamDeploy.Release.Store and BeamDeploy.HotUpgrade.Installation
  def effective_user, do: :erlang.nif_error(:nif_not_loaded)
  def make_private_directory(_path), do: :erlang.nif_error(:nif_not_loaded)
  def lock_file(_path), do: :erlang.nif_error(:nif_not_loaded)
  def unlock_file(_lock), do: :erlang.nif_error(:nif_not_loaded)
  def replace_file(_path, _contents), do: :erlang.nif_error(:nif_not_loaded)
  def spread_directory(_path), do: :erlang.nif_error(:nif_not_loaded)
  def sync_file_system(_path), do: :erlang.nif_error(:nif_not_loaded)

  # src/beam.rs, owner BeamDeploy.HotUpgrade.Beam
  def beam_md5s(_beam, _significant), do: :erlang.nif_error(:nif_not_loaded)
  def beam_facts(_beam), do: :erlang.nif_error(:nif_not_loaded)
  def beam_names(_beam), do: :erlang.nif_error(:nif_not_loaded)

  # src/scan.rs, owner BeamDeploy.HotUpgrade.Scan
  def release_scan(_archive, _significant, _known, _differences, _limits),
    do: :erlang.nif_error(:nif_not_loaded)
end
