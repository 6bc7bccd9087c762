defmodule BeamDeploy.HotUpgrade.AppData do
  @moduledoc false
  # Responsible for: what the application controller knows of applications (`.app` files), and their environment.
  # Not for: starting and stopping them (Applications).

  alias BeamDeploy.HotUpgrade.SysConfig

  @doc "Reads the `.app` files of the applications, by their directories."
  @spec read(%{String.t() => Path.t()}) ::
          {:ok, [{:application, atom(), keyword()}]} | {:error, {:invalid_release, term()}}
  def read(libraries) do
    Enum.reduce_while(libraries, {:ok, []}, fn {app, library}, {:ok, found} ->
      path = Path.join([library, "ebin", app <> ".app"])

      case :file.consult(path) do
        {:ok, [{:application, _name, _keys} = data]} -> {:cont, {:ok, [data | found]}}
        _other -> {:halt, {:error, {:invalid_release, {:malformed, path}}}}
      end
    end)
  end

  @doc """
  Tells the application controller of new versions. The environment stays as it is, defaults that are new are added:
  the controller computes it anew from what it is given, so it is given all that is set now.
  """
  @spec update([{:application, atom(), keyword()}]) :: :ok | {:error, term()}
  def update(applications) do
    changed = Enum.filter(applications, fn {:application, app, keys} -> changed?(app, keys) end)

    if changed == [],
      do: :ok,
      else: :application_controller.change_application_data(changed, environment())
  end

  defp changed?(app, keys) do
    loaded = Application.spec(app)

    # Not loaded ones are new, and come with their own data.
    loaded != nil and
      Enum.any?(Keyword.drop(keys, [:env, :registered, :start_phases]), fn {key, value} ->
        is_map_key(Map.new(loaded), key) and loaded[key] != value
      end)
  end

  @doc "Everything that is configured, also for applications that are not loaded."
  @spec environment() :: [{atom(), keyword()}]
  def environment do
    live =
      for {app, _description, _vsn} <- Application.loaded_applications(),
          do: {app, Application.get_all_env(app)}

    Keyword.merge(SysConfig.boot(), live)
  end
end
