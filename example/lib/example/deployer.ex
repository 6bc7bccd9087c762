defmodule Example.Deployer do
  @moduledoc """
  One deploy at a time: build, then swap or hot upgrade, with its progress. Lives on the parent, so a deploy goes on while
  the peer that showed the button is replaced.
  """
  use GenServer

  alias Example.{Build, Progress}

  @build [:compile, :assemble, :tar]
  @swap [:verify, :stage, :boot, :health, :cutover, :drain, :stop, :finish]
  @hot [:plan, :stage, :suspend, :load, :migrate, :resume, :refresh]

  @steps %{blue_green: @build ++ @swap, hot: @build ++ @hot, rollback: @swap}

  @log_lines 200
  @history 12

  def start_link(_), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc "Builds a release from the card and upgrades to it. `kind` is :blue_green or :hot."
  def deploy(kind, %{label: _, hue: _, fault: _} = card) when kind in [:blue_green, :hot],
    do: GenServer.call(__MODULE__, {:run, kind, card})

  @doc "Back to the previous release."
  def rollback, do: GenServer.call(__MODULE__, {:run, :rollback, nil})

  @doc "The deploy under way or the last one, those before it, and what is known of the versions."
  def snapshot, do: GenServer.call(__MODULE__, :snapshot)

  @impl true
  def init(nil) do
    :ok = Progress.attach(node())
    versions = %{Example.version() => %{label: Example.label(), hue: Example.hue()}}
    {:ok, %{task: nil, job: nil, history: [], versions: versions, count: 0}}
  end

  @impl true
  def handle_call({:run, _kind, _card}, _from, %{task: %Task{}} = state),
    do: {:reply, {:error, :busy}, state}

  def handle_call({:run, kind, card}, _from, state) do
    version = card && Build.next_version(Map.keys(state.versions))
    job = new_job(kind, card, version, state.count + 1)
    server = self()
    task = Task.Supervisor.async_nolink(Example.Tasks, fn -> run(job, card, server) end)

    {:reply, :ok,
     %{state | task: task, job: job, count: job.id, versions: know(state.versions, job, card)}}
  end

  def handle_call(:snapshot, _from, state),
    do: {:reply, Map.take(state, [:job, :history, :versions]), state}

  @impl true
  def handle_cast({:phase, name, event, milliseconds}, %{task: %Task{}} = state),
    do: {:noreply, update_in(state.job, &step(&1, name, event, milliseconds))}

  # The first boot, or an upgrade that somebody else asked for.
  def handle_cast({:phase, _name, _event, _milliseconds}, state), do: {:noreply, state}

  @impl true
  def handle_info({:build, event}, %{task: %Task{}} = state),
    do: {:noreply, update_in(state.job, &built(&1, event))}

  def handle_info({ref, result}, %{task: %Task{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, finish(state, result)}
  end

  def handle_info({:DOWN, ref, :process, _pid, reason}, %{task: %Task{ref: ref}} = state),
    do: {:noreply, finish(state, {:error, {:crashed, reason}})}

  def handle_info(_late, state), do: {:noreply, state}

  # In the task.

  defp run(%{kind: :rollback}, nil, _server), do: BeamDeploy.rollback()

  defp run(job, card, server) do
    with {:ok, tarball} <- Build.run(card, job.version, &send(server, {:build, {:line, &1}})) do
      send(server, {:build, :done})
      upgrade(job.kind, tarball)
    end
  end

  defp upgrade(:blue_green, tarball), do: BeamDeploy.upgrade(tarball)
  defp upgrade(:hot, tarball), do: BeamDeploy.hot_upgrade(tarball, otp_app: :example)

  # The job: a plain map, since it is shown by versions that are newer than this one.

  defp new_job(kind, card, version, id) do
    %{
      id: id,
      kind: kind,
      label: card && card.label,
      hue: card && card.hue,
      version: version,
      status: :running,
      steps:
        for(name <- Map.fetch!(@steps, kind), do: %{name: name, status: :waiting, ms: nil})
        |> List.update_at(0, &%{&1 | status: :running}),
      log: [],
      error: nil,
      started_at: now(),
      step_at: now(),
      switched_at: nil,
      finished_at: nil,
      failed_before: Example.Prober.failed(),
      failed_requests: nil
    }
  end

  defp know(versions, _job, nil), do: versions

  defp know(versions, job, card),
    do: Map.put(versions, job.version, Map.take(card, [:label, :hue]))

  # `mix release` says what it is at.
  defp built(job, {:line, line}) do
    job = %{job | log: Enum.take([line | job.log], @log_lines)}

    cond do
      line =~ ~r/^\* assembling/ -> advance(job, :compile, :assemble)
      line =~ ~r/^\* building .*\.tar\.gz/ -> advance(job, :assemble, :tar)
      true -> job
    end
  end

  defp built(job, :done), do: advance(job, :tar, nil)

  defp advance(job, from, to) do
    job = step(job, from, :stop, now() - job.step_at)
    job = if to, do: step(job, to, :start, nil), else: job
    %{job | step_at: now()}
  end

  defp step(job, name, event, milliseconds) do
    switched? = event == :stop and name in [:cutover, :load]
    job = if switched?, do: %{job | switched_at: now()}, else: job
    status = Map.fetch!(%{start: :running, stop: :done, exception: :failed}, event)

    update_in(job.steps, fn steps ->
      for step <- steps,
          do: if(step.name == name, do: %{step | status: status, ms: milliseconds}, else: step)
    end)
  end

  defp finish(state, result) do
    job = %{
      state.job
      | finished_at: now(),
        failed_requests: Example.Prober.failed() - state.job.failed_before
    }

    job = outcome(job, result)
    %{state | task: nil, job: job, history: Enum.take([summary(job) | state.history], @history)}
  end

  defp outcome(job, :ok), do: %{job | status: :done}

  defp outcome(job, {:error, reason}) do
    steps =
      for step <- job.steps,
          do: if(step.status == :running, do: %{step | status: :failed}, else: step)

    %{job | status: :failed, steps: steps, error: sentence(reason)}
  end

  defp summary(job), do: Map.drop(job, [:log, :steps])

  defp sentence({:exit_status, status}), do: "The build failed: mix ended with status #{status}."
  defp sentence(:mix_not_found), do: "The build failed: there is no mix in the PATH."
  defp sentence(reason), do: Exception.message(%BeamDeploy.Error{reason: reason})

  defp now, do: System.system_time(:millisecond)
end
