defmodule BeamDeploy.Integration.StaticManifest do
  @moduledoc false
  # Responsible for: Phoenix endpoints reading their manifest of digested static files again.
  # Not for: the files, which are found by the code path.
  #
  # An endpoint keeps the manifest in its configuration table since it was started. Its `config_change/2`, which an
  # application's own callback calls, clears what is cached and reads the manifest again, also when nothing changed.

  alias BeamDeploy.HotUpgrade.Processes

  @doc "Answers the endpoints that read it."
  @spec reload() :: [module()]
  def reload do
    for {pid, _call} <-
          Processes.by_initial_call(
            &match?({:supervisor, :"Elixir.Phoenix.Endpoint.Supervisor", 1}, &1)
          ),
        {:registered_name, endpoint} when is_atom(endpoint) <- [
          Process.info(pid, :registered_name)
        ],
        function_exported?(endpoint, :config_change, 2) do
      endpoint.config_change([], [])
      endpoint
    end
  end
end
