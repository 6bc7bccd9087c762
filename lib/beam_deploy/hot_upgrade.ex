defmodule BeamDeploy.HotUpgrade do
  @moduledoc false
  # Responsible for: the phases of a hot upgrade of this node, in their order, all or nothing.
  # Not for: how a tarball is read, how a process is asked; on which node this runs (the facade decides).

  alias BeamDeploy.Events

  alias BeamDeploy.HotUpgrade.{
    AppData,
    CodePath,
    Guard,
    Installation,
    Loader,
    Migration,
    Options,
    Pause,
    Plan,
    Processes,
    Refresh,
    Running,
    Supervision,
    SysConfig,
    Verdict
  }

  alias BeamDeploy.Release.{Archive, Signature}

  require Logger

  @type reason ::
          :nothing_changed
          | :upgrade_in_progress
          | {:not_hot, :blue_green | :cold, [Verdict.reason() | {:removed_in_use, [String.t()]}]}
          | {:old_code_in_use, [pid()]}
          | {:old_code_unavailable, [module()]}
          | {:suspend_failed, [pid()]}
          | {:load_failed, [{module(), term()}]}
          | {:code_change_failed, %{processes: [Migration.failure()], killed: [pid()]}}
          | {:config_failed, term()}
          | {:not_recorded, File.posix()}
          | {:crashed, term()}
          | {:unsigned, Path.t()}
          | {:bad_signature, Path.t()}
          | Archive.reason()

  @doc """
  Upgrades this node to the release in the tarball.

  With `release_root:` the release is staged there already, and whoever staged it remembers it; without, it is installed
  into the release this node was booted from.
  """
  @spec run(Path.t(), keyword()) :: :ok | {:error, reason()}
  def run(path, options) do
    options = Options.hot_upgrade!(options)
    alone(fn caller -> upgrade(path, options, caller) end)
  end

  @doc "What `run/2` would do, and whether it should. Changes nothing."
  @spec plan(Path.t(), keyword()) :: {:ok, Plan.t()} | {:error, reason()}
  def plan(path, options \\ []) do
    options = Options.plan!(options)
    with {:ok, plan, _new} <- build(path, options), do: {:ok, plan}
  end

  # The phases run in a process of their own: its mailbox holds nothing but what it asked for, it goes on when the caller
  # goes away, and its name says that an upgrade is under way.
  defp alone(function) do
    caller = {self(), make_ref()}

    {pid, monitor} =
      :erlang.spawn_opt(
        fn ->
          if register(),
            do: exit({:done, function.(caller)}),
            else: exit({:done, {:error, :upgrade_in_progress}})
        end,
        # Its heap holds every process and its monitor at once.
        [:monitor, min_heap_size: 200_000, message_queue_data: :off_heap]
      )

    receive do
      {:DOWN, ^monitor, :process, ^pid, {:done, result}} ->
        _installation = committed(caller)
        result

      {:DOWN, ^monitor, :process, ^pid, reason} ->
        :ok = Guard.await()
        cut_off(committed(caller), reason)
    end
  end

  # What the guard has sent, if there was a commit.
  defp committed({_pid, reference}) do
    receive do
      {^reference, :committed, installation} -> installation
    after
      0 -> nil
    end
  end

  # Killed before that it has changed nothing; after that it is done, all but what follows.
  defp cut_off(nil, reason), do: {:error, {:crashed, reason}}

  defp cut_off(installation, reason) do
    failures = [{:refresh, {:crashed, reason}} | remember(installation)]
    complain(failures)
  end

  defp register do
    not Guard.busy?() and Process.register(self(), __MODULE__)
  rescue
    ArgumentError -> false
  end

  defp upgrade(path, options, caller) do
    started = System.monotonic_time()
    Events.notify(:hot_upgrade, :start, %{otp_app: options.otp_app})

    with {:ok, plan, new} <- phase(:plan, fn -> decide(path, options) end),
         {:ok, staged} <- phase(:stage, fn -> stage(path, plan, new, options) end),
         {:ok, pause} <- pause(staged, options, caller) do
      failures = phase(:refresh, fn -> refresh(staged) end)
      finish(plan, pause, failures, started)
      :ok
    else
      {:error, reason} ->
        Events.notify(:hot_upgrade, :exception, %{otp_app: options.otp_app, reason: reason})
        {:error, reason}
    end
  end

  defp finish(plan, pause, failures, started) do
    :ok = complain(failures)

    if plan.skipped != [] do
      Logger.warning("beam_deploy: hot upgrade skipped #{Enum.join(plan.skipped, ", ")}")
    end

    duration = System.monotonic_time() - started

    Logger.info(
      "beam_deploy: hot upgrade to version=#{plan.to.version} done in #{milliseconds(duration)} ms: " <>
        "#{length(plan.changed)} changed and #{length(plan.new)} new modules, #{pause.processes} processes " <>
        "paused for #{milliseconds(pause.pause)} ms"
    )

    Events.notify(:hot_upgrade, :stop, %{
      version: plan.to.version,
      duration: duration,
      pause: pause.pause,
      processes: pause.processes,
      plan: plan,
      failures: failures
    })
  end

  defp complain(failures) do
    for {step, reason} <- failures do
      Logger.error("beam_deploy: hot upgrade is done, but its #{step} failed: #{inspect(reason)}")
    end

    :ok
  end

  # --- plan

  defp decide(path, options) do
    with {:ok, plan, new} <- build(path, options),
         :ok <- permit(plan, options.force),
         do: {:ok, plan, new}
  end

  # What is loaded comes out of the one pass over the tarball that also counts its digest. A signature is checked before
  # anything is made of the contents, and the digest that it is of has to be the one of that pass.
  defp build(path, options) do
    build_options = options |> Map.take([:against, :config, :supervisors]) |> Map.to_list()

    with {:ok, sha256} <- admit(path, options),
         {:ok, plan, new} <- Plan.build(path, build_options),
         :ok <- Archive.check_sha256(new.contents.sha256, sha256),
         :ok <- check_app(new.contents, options.otp_app),
         do: {:ok, plan, new}
  end

  defp admit(path, options) do
    with :ok <- Archive.verify(path),
         {:ok, admitted} <- Signature.admit(path, options.verify, sha256: options.sha256),
         do: {:ok, admitted[:sha256]}
  end

  defp check_app(_contents, nil), do: :ok

  defp check_app(contents, otp_app) do
    if is_map_key(contents.applications, Atom.to_string(otp_app)),
      do: :ok,
      else:
        {:error,
         {:invalid_release, {:other_app, contents.applications |> Map.keys() |> Enum.sort()}}}
  end

  defp permit(plan, force?) do
    cond do
      Plan.empty?(plan) ->
        {:error, :nothing_changed}

      plan.recommendation == :hot ->
        :ok

      force? ->
        Logger.warning("beam_deploy: hot upgrade by force, although #{inspect(plan.reasons)}")

      true ->
        {:error, {:not_hot, plan.recommendation, plan.reasons}}
    end
  end

  # --- stage: all that can be done while everything runs

  defp stage(path, plan, new, options) do
    with :ok <- removed_unused(plan.removed, options.force),
         {:ok, installation} <- Installation.prepare(path, new.contents, options.release_root) do
      case prepare(plan, new.changes, installation, options) do
        {:ok, staged} ->
          {:ok, staged}

        {:error, reason} ->
          :ok = Installation.discard(installation)
          {:error, reason}
      end
    end
  end

  defp removed_unused(_removed, true), do: :ok
  defp removed_unused([], _force?), do: :ok

  defp removed_unused(removed, false) do
    case Processes.running(removed) do
      [] -> :ok
      used -> {:error, {:not_hot, :blue_green, [{:removed_in_use, used}]}}
    end
  end

  defp prepare(plan, changes, installation, options) do
    changed = atoms(plan.changed)
    removed = atoms(plan.removed -- Processes.running(plan.removed))

    with {:ok, app_data} <- AppData.read(installation.libraries),
         {:ok, config} <- config(installation, options.config),
         {:ok, previous} <- Loader.previous(changed, options.force),
         :ok <- Loader.purge(changed ++ atoms(plan.new) ++ removed, options.force),
         {:ok, loader} <-
           Loader.prepare(changes, &Installation.locate(installation, &1), previous) do
      facts = Map.new(changes, &{String.to_atom(&1.name), &1.facts})
      modules = MapSet.new(changed)
      # Last, since processes come and go.
      {targets, known} = Processes.affected(modules)

      {:ok,
       %{
         plan: plan,
         changes: changes,
         modules: modules,
         facts: facts,
         removed: removed,
         app_data: app_data,
         config: config,
         installation: installation,
         loader: loader,
         targets: targets,
         known: known,
         supervisors: if(options.supervisors, do: supervisors(targets), else: [])
       }}
    end
  end

  # Only of names that are in this VM: a module that was loaded, or is not and has no old code either.
  defp atoms(names),
    do: for(name <- names, {:ok, module} <- [Running.existing_atom(name)], do: module)

  defp config(_installation, false), do: {:ok, nil}

  defp config(installation, true) do
    path = Installation.release_file(installation, "sys.config")

    with {:ok, next} <- SysConfig.evaluate(path, installation.root),
         do: {:ok, %{next: next, boot: SysConfig.boot()}}
  end

  defp supervisors(targets) do
    for %{kind: :supervisor, pid: pid, modules: [module]} <- targets,
        do: {pid, module, Supervision.stopped(pid)}
  end

  # --- suspend, load, migrate, resume

  defp pause(staged, options, caller) do
    path = :code.get_path()
    migrants = migrants(staged.targets, staged.facts)

    outcome =
      Pause.run(%{
        migration: Migration.prepare(migrants, staged.known),
        modes: Migration.modes(migrants),
        newcomers: newcomers(staged.modules, staged.facts),
        loader: staged.loader,
        installation: staged.installation,
        path: %{
          now: path,
          next:
            CodePath.switched(
              path,
              staged.installation.libraries,
              staged.installation.consolidated
            )
        },
        suspend_timeout: options.suspend_timeout,
        code_change_timeout: options.code_change_timeout,
        caller: caller
      })

    metadata = %{
      version: staged.plan.to.version,
      processes: outcome.processes,
      pause: outcome.pause
    }

    for {phase, duration, result} <- outcome.timings,
        do: Events.told(:hot_upgrade, phase, metadata, duration, result)

    case outcome.result do
      :ok ->
        {:ok, outcome}

      {:error, reason} ->
        :ok = Installation.discard(staged.installation)
        {:error, reason}
    end
  end

  defp migrants(targets, facts), do: Enum.map(targets, &Migration.migrant(&1, facts))

  # The guard has a copy of it: of nothing but what it takes.
  defp newcomers(modules, facts) do
    fn known ->
      {targets, known} = Processes.newcomers(modules, known)
      {migrants(targets, facts), known}
    end
  end

  # --- refresh

  defp refresh(staged), do: remember(staged.installation) ++ Refresh.run(staged)

  defp remember(installation) do
    :ok = Installation.announce(installation)

    case Installation.sync(installation) do
      :ok -> []
      {:error, posix} -> [{:sync, posix}]
    end
  end

  defp phase(phase, function), do: Events.span(:hot_upgrade, phase, %{}, function)

  defp milliseconds(native), do: native |> Events.milliseconds() |> Events.text()
end
