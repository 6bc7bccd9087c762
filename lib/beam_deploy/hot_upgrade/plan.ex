defmodule BeamDeploy.HotUpgrade.Plan do
  @moduledoc false
  # Responsible for: the difference between two releases as plain data, and whether it can be taken over hot.
  # Not for: processes, loading.

  alias BeamDeploy.HotUpgrade.{Beam, Contents, Running, Scan, Verdict}

  @enforce_keys [:to, :recommendation, :reasons]
  defstruct [
    :from,
    :to,
    :recommendation,
    reasons: [],
    changed: [],
    new: [],
    removed: [],
    unchanged: 0,
    skipped: [],
    protocols: [],
    applications: %{added: %{}, removed: %{}, changed: %{}},
    files: %{added: [], changed: [], removed: []},
    config: []
  ]

  @typedoc """
  Modules are named by strings as their files are, `"Elixir.MyApp.Server"`. `skipped` modules differ but are never
  loaded into a running node, and `reasons` say why. `protocols` are the changed consolidated ones, `files` those
  under `priv`, `config` the changed texts such as `"runtime.exs"`.
  """
  @type t :: %__MODULE__{
          from: %{name: String.t() | nil, version: String.t() | nil},
          to: %{name: String.t(), version: String.t(), sha256: String.t()},
          recommendation: :hot | :blue_green | :cold,
          reasons: [Verdict.reason()],
          changed: [String.t()],
          new: [String.t()],
          removed: [String.t()],
          unchanged: non_neg_integer(),
          skipped: [String.t()],
          protocols: [String.t()],
          applications: %{added: map(), removed: map(), changed: map()},
          files: %{added: [String.t()], changed: [String.t()], removed: [String.t()]},
          config: [String.t()]
        }

  @typedoc "A module to load."
  @type change :: %{
          name: String.t(),
          path: Path.t(),
          bytes: binary(),
          facts: map(),
          kind: :changed | :new,
          app: String.t() | nil
        }

  @doc "Compares a tarball with what runs here, or with the tarball `against:`."
  @spec build(Path.t(), keyword()) ::
          {:ok, t(), %{changes: [change()], contents: Contents.t()}} | {:error, term()}
  def build(path, options \\ []) do
    with {:ok, old} <- old_contents(options[:against]),
         {:ok, scan} <- Scan.read(path, Contents.md5s(old)),
         {:ok, new} <- Contents.from_scan(scan),
         old = with_bare_md5s(old, new, options[:against]),
         {:ok, fields} <- old_fields(old, new, options[:against]) do
      {plan, changes} = diff(old, new, Keyword.put(options, :old_fields, fields))
      {:ok, plan, %{changes: changes, contents: new}}
    end
  end

  @doc "The pure part of `build/2`."
  @spec diff(Contents.t(), Contents.t(), keyword()) :: {t(), [change()]}
  def diff(%Contents{} = old, %Contents{} = new, options \\ []) do
    modules = modules(old, new)

    {skipped, loadable} = Enum.split_with(modules.changed ++ modules.new, &Verdict.skipped?/1)

    skipped = names(skipped)

    plan = %__MODULE__{
      from: Map.take(old, [:name, :version]),
      to: Map.take(new, [:name, :version, :sha256]),
      recommendation: :hot,
      reasons: [],
      changed: names(modules.changed) -- skipped,
      new: names(modules.new) -- skipped,
      removed: modules.removed,
      unchanged: modules.unchanged,
      skipped: skipped,
      protocols: modules.changed |> names() |> Enum.filter(&(&1 in new.protocols)),
      applications: applications(old, new),
      files: files(old, new),
      config: config(old.config, new.config)
    }

    {recommendation, reasons} =
      Verdict.judge(plan, modules.changed ++ modules.new, old, new, options)

    {%{plan | recommendation: recommendation, reasons: reasons}, loadable}
  end

  @doc "Whether the tarball brings anything at all."
  @spec empty?(t()) :: boolean()
  def empty?(%__MODULE__{} = plan) do
    plan.changed == [] and plan.new == [] and plan.removed == [] and plan.skipped == [] and
      plan.config == [] and
      Enum.all?(Map.values(plan.applications), &(&1 == %{})) and
      Enum.all?(Map.values(plan.files), &(&1 == []))
  end

  defp old_contents(nil), do: {:ok, Running.contents()}

  defp old_contents(path) do
    with {:ok, scan} <- Scan.read(path, :all), do: Contents.from_scan(scan)
  end

  # Looked for only where the first comparison failed: it reads the module's file.
  defp with_bare_md5s(old, _new, path) when path != nil, do: old

  defp with_bare_md5s(old, new, nil) do
    modules =
      for {name, %{facts: _}} <- new.modules,
          is_map_key(old.modules, name),
          reduce: old.modules do
        modules ->
          Map.update!(
            modules,
            name,
            &Map.put_new_lazy(&1, :bare_md5, fn -> Running.bare_md5(name) end)
          )
      end

    %{old | modules: modules}
  end

  defp old_fields(_old, new, nil) do
    {:ok,
     for(
       {name, %{facts: %{struct_fields: [_ | _]}}} <- new.modules,
       into: %{},
       do: {name, Running.struct_fields(name)}
     )}
  end

  defp old_fields(_old, new, path) do
    with {:ok, scan} <- Scan.read(path, Contents.md5s(new)) do
      {:ok,
       for(
         %{name: name, facts: facts} <- scan.modules,
         into: %{},
         do: {name, facts.struct_fields}
       )}
    end
  end

  defp modules(old, new) do
    {same, different} =
      Enum.split_with(new.modules, fn {name, module} ->
        is_map_key(old.modules, name) and Contents.same_module?(old.modules[name], module)
      end)

    {changed, added} =
      Enum.split_with(different, fn {name, _module} -> is_map_key(old.modules, name) end)

    %{
      unchanged: length(same),
      changed: changes(changed, :changed),
      new: changes(added, :new),
      removed: removed(old, new)
    }
  end

  defp changes(modules, kind) do
    modules
    |> Enum.map(fn {name, module} ->
      %{
        name: name,
        path: module.path,
        bytes: module.bytes,
        facts: module.facts,
        kind: kind,
        app: module.app
      }
    end)
    |> Enum.sort_by(& &1.name)
  end

  # Modules of a removed application go with it. What belongs to no application was never part of a release. Of an
  # application that is in the tarball by name only nothing has gone: a release without its own runtime system holds no
  # module of OTP.
  defp removed(old, new) do
    held = for {_name, %{app: app}} <- new.modules, uniq: true, do: app

    for {name, %{app: app}} <- old.modules,
        app != nil,
        is_map_key(new.applications, app),
        app in held,
        not is_map_key(new.modules, name) do
      name
    end
    |> Enum.sort()
  end

  defp names(changes), do: Enum.map(changes, & &1.name)

  # An application of a node that runs no release, such as `mix` in development, is no loss.
  defp applications(%{version: version, applications: old}, %{applications: new}) do
    %{
      added: Map.drop(new, Map.keys(old)),
      removed: if(version == nil, do: %{}, else: Map.drop(old, Map.keys(new))),
      changed:
        for(
          {app, version} <- new,
          is_map_key(old, app),
          old[app] != version,
          into: %{},
          do: {app, {old[app], version}}
        )
    }
  end

  defp files(old, new) do
    # Files of applications that come or go whole come or go with them.
    both = fn files, other ->
      for {path, md5} <- files,
          [app | _] = Path.split(path),
          is_map_key(other.applications, app),
          do: {path, md5}
    end

    new_files = both.(new.files, old)
    old_files = both.(old.files, new)

    %{
      added:
        for({path, _md5} <- new_files, not is_map_key(old.files, path), do: path) |> Enum.sort(),
      changed:
        for(
          {path, md5} <- new_files,
          is_map_key(old.files, path),
          old.files[path] != md5,
          do: path
        )
        |> Enum.sort(),
      removed:
        for({path, _md5} <- old_files, not is_map_key(new.files, path), do: path) |> Enum.sort()
    }
  end

  # Outside of a release nothing says how the node was configured.
  defp config(old, _new) when old == %{}, do: []

  defp config(old, new) do
    for name <- Contents.config_names(), old[name] != new[name], do: name
  end

  @doc "Names of the modules that the code of a change can name."
  @spec mentioned(change()) :: MapSet.t(String.t())
  def mentioned(%{bytes: bytes}) do
    {:ok, names} = Beam.names(bytes)
    MapSet.new(names)
  end
end
