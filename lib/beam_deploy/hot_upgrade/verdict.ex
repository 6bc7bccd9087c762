defmodule BeamDeploy.HotUpgrade.Verdict do
  @moduledoc false
  # Responsible for: whether a difference can be taken over by a running node, and every reason why not.
  # Not for: finding the difference (Plan).
  #
  # What cannot be told from a stripped file is judged by the safe side: a changed supervisor may start other
  # children, a changed struct may be in a state that nobody converts.

  alias BeamDeploy.HotUpgrade.{Contents, Plan}

  @type reason ::
          {:erts_changed, old :: String.t(), new :: String.t()}
          | {:applications_added | :applications_removed, [String.t()]}
          | {:platform_changed, [String.t()]}
          | {:supervision_changed, [String.t()]}
          | {:native_code_changed, [String.t()]}
          | {:struct_changed, String.t(), %{added: [String.t()], removed: [String.t()]}}
          | {:config_changed, [String.t()]}
          | {:beam_deploy_changed, [String.t()]}

  # The applications that the VM and Elixir themselves run on: sticky, or called by everything at any time.
  @platform ~w(kernel stdlib compiler erts elixir logger sasl)

  @supervisors ~w(supervisor Elixir.Supervisor Elixir.DynamicSupervisor)
  @applications ~w(application Elixir.Application)
  # Read at boot only.
  @boot_config ~w(vm.args env.sh)

  @doc "Modules that are never loaded into a running node, even by force."
  @spec skipped?(Plan.change()) :: boolean()
  def skipped?(change),
    do: change.kind == :changed and (native?(change) or platform?(change) or own?(change))

  @spec judge(Plan.t(), [Plan.change()], Contents.t(), Contents.t(), keyword()) ::
          {:hot | :blue_green | :cold, [reason()]}
  def judge(plan, changes, old, new, options) do
    changed = Enum.filter(changes, &(&1.kind == :changed))

    reasons =
      erts(old, new) ++
        applications(plan) ++
        listed(:platform_changed, Enum.filter(changed, &platform?/1)) ++
        supervision(changed, options) ++
        native_code(plan, changes) ++
        listed(:beam_deploy_changed, Enum.filter(changed, &own?/1)) ++
        structs(changed, options[:old_fields] || %{}) ++
        config(plan.config, options)

    {recommendation(reasons, new), reasons}
  end

  defp recommendation([], _new), do: :hot

  # A peer of the new release could not even be started from here.
  defp recommendation(reasons, new) do
    cond do
      List.keymember?(reasons, :erts_changed, 0) and not new.bundled_erts? -> :cold
      not is_map_key(new.applications, "beam_deploy") -> :cold
      true -> :blue_green
    end
  end

  defp erts(%{erts_version: same}, %{erts_version: same}), do: []
  defp erts(old, new), do: [{:erts_changed, old.erts_version, new.erts_version}]

  defp applications(%{applications: %{added: added, removed: removed}}) do
    for {tag, apps} <- [applications_added: added, applications_removed: removed], apps != %{} do
      {tag, apps |> Map.keys() |> Enum.sort()}
    end
  end

  defp supervision(changed, options) do
    behaviours = if options[:supervisors], do: @applications, else: @applications ++ @supervisors

    listed(
      :supervision_changed,
      Enum.filter(changed, fn change ->
        Enum.any?(change.facts.behaviours, &(&1 in behaviours))
      end)
    )
  end

  defp native_code(plan, changes) do
    modules = for change <- changes, native?(change), change.kind == :changed, do: change.name
    libraries = Enum.filter(plan.files.changed, &(Path.extname(&1) in [".so", ".dylib", ".dll"]))
    if modules ++ libraries == [], do: [], else: [{:native_code_changed, modules ++ libraries}]
  end

  defp structs(changed, old_fields) do
    for %{name: name, facts: %{struct_fields: new}} = change when new != nil <- changed,
        old = old_fields[name],
        old != nil,
        old != new or new == [],
        not migrated?(change, changed) do
      {:struct_changed, name, %{added: new -- old, removed: old -- new}}
    end
  end

  # Somebody converts it: a changed callback module that has a `code_change` of its own and knows the struct, and no
  # changed callback module that knows it is without one.
  defp migrated?(%{name: name}, changed) do
    knowing =
      for change <- changed,
          callback?(change),
          change.name == name or name in Plan.mentioned(change),
          do: migrates?(change)

    knowing != [] and Enum.all?(knowing)
  end

  defp callback?(%{facts: facts}), do: facts.state_change or facts.code_change != :none

  defp migrates?(%{facts: facts}), do: facts.state_change or facts.code_change == :own

  defp config([], _options), do: []

  defp config(names, options) do
    names = if options[:config], do: Enum.filter(names, &(&1 in @boot_config)), else: names
    if names == [], do: [], else: [{:config_changed, names}]
  end

  defp listed(_tag, []), do: []
  defp listed(tag, changes), do: [{tag, Enum.map(changes, & &1.name)}]

  defp native?(change), do: change.facts.on_load
  defp platform?(change), do: change.app in @platform

  # This code carries out the upgrade; it is not replaced under its own feet.
  defp own?(change), do: change.app == "beam_deploy"
end
