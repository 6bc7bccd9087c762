defmodule BeamDeploy.HotUpgrade.Refresh do
  @moduledoc false
  # Responsible for: what follows new code: versions of applications, configuration, children of supervisors,
  # applications that come and go, views that are open in browsers, the static manifest.
  # Not for: code and states, which are past undoing when this runs. What fails here is told and changes nothing there.

  alias BeamDeploy.HotUpgrade.{AppData, Loader, Running, Supervision}
  alias BeamDeploy.Integration.{LiveView, StaticManifest}
  alias BeamDeploy.PeerNode

  @type failure :: {step :: atom(), reason :: term()}

  @spec run(map()) :: [failure()]
  def run(staged) do
    steps = [
      versions: fn -> AppData.update(staged.app_data) end,
      config: fn -> configure(staged.config) end,
      applications: fn -> applications(staged.plan.applications) end,
      supervisors: fn -> supervisors(staged.supervisors) end,
      removed: fn -> Loader.remove(staged.removed) end,
      # Views name static files by what the manifest says.
      static: fn -> static(staged.plan.files) end,
      live_views: fn -> live_views(staged) end
    ]

    for {step, function} <- steps, {:error, reason} <- [attempt(function)], do: {step, reason}
  end

  # Callbacks of applications run here; one that fails must not keep the others from running.
  defp attempt(function) do
    function.()
  catch
    kind, reason -> {:error, {kind, reason, __STACKTRACE__}}
  end

  defp configure(nil), do: :ok

  defp configure(%{next: next, boot: boot}) do
    before = :application_controller.prep_config_change()
    next = PeerNode.keep_listeners(next)
    :ok = Application.put_all_env(next)

    for {app, pairs} <- boot,
        {key, _value} <- pairs,
        not Keyword.has_key?(next[app] || [], key),
        {app, key} != {:elixir, :config_provider_init},
        do: Application.delete_env(app, key)

    :application_controller.config_change(before)
  end

  defp applications(%{added: added, removed: removed}) do
    failures =
      for(app <- existing(removed), {:error, reason} <- [stop(app)], do: {app, reason}) ++
        for(
          app <- Map.keys(added),
          {:error, reason} <- [start(String.to_atom(app))],
          do: {app, reason}
        )

    if failures == [], do: :ok, else: {:error, failures}
  end

  defp existing(apps),
    do: for({app, _version} <- apps, {:ok, app} <- [Running.existing_atom(app)], do: app)

  defp start(app) do
    with {:ok, _started} <- Application.ensure_all_started(app, :permanent), do: :ok
  end

  defp stop(app) do
    case Application.stop(app) do
      :ok -> Application.unload(app)
      {:error, {:not_started, ^app}} -> Application.unload(app)
      {:error, reason} -> {:error, reason}
    end
  end

  defp supervisors(supervisors) do
    case Enum.flat_map(supervisors, fn {pid, module, stopped} ->
           Supervision.follow(pid, module, stopped)
         end) do
      [] -> :ok
      failures -> {:error, failures}
    end
  end

  # A function component, a live component or a layout can be part of any view.
  defp live_views(%{plan: %{files: files}} = staged) do
    parts? = Enum.any?(staged.changes, & &1.facts.components)
    stylesheets = StaticManifest.stylesheets(files.added ++ files.changed)

    with {:ok, _count} <- LiveView.render_again(staged.modules, parts?, stylesheets), do: :ok
  end

  defp static(%{added: [], changed: [], removed: []}), do: :ok

  defp static(_changed) do
    StaticManifest.reload()
    :ok
  end
end
