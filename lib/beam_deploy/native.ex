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
end
