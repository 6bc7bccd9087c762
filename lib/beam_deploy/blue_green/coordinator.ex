defmodule BeamDeploy.BlueGreen.Coordinator do
  @moduledoc false
  # Responsible for: one upgrade at a time; which peer is active; booting another when it ends by itself. It does no work
  # of its own, so it answers at once at any moment.
  # Not for: the phases of a swap, tarballs, boot arguments, sockets.

  use GenServer, shutdown: :infinity

  alias BeamDeploy.{BlueGreen, Error, Options, Parent, Release}
  alias BeamDeploy.BlueGreen.{Listener, Peer, Probation}
  alias BeamDeploy.Events.Terminal
  alias BeamDeploy.Release.{Platform, Store}

  require Logger

  defstruct [
    :options,
    :environment,
    # The release to serve and the peer that does, nil while it is booted.
    :release,
    :active,
    :monitor,
    # A swap under way, who waits for it, and its peers: incoming up to cutover, outgoing from there on.
    :swap,
    :incoming,
    :outgoing,
    :cutover_state,
    callers: [],
    # What was asked for while no peer serves.
    queued: nil,
    # Who was answered last.
    answered: [],
    # The boot of a peer where none serves.
    boot: nil,
    booting: nil,
    crashes: [],
    restarts: 0,
    # Of a release that was just swapped in.
    probation: nil,
    # What to boot should the release to serve not come up when the parent starts.
    fallbacks: [],
    # The start of the parent waits for the first boot.
    start: :pending,
    starter: nil,
    last_swap: nil
  ]

  # How long a parent that ends does so later for whoever was given the reason as an answer.
  @farewell 3_000

  @typedoc "Where a call comes from, and the I/O device that its progress is printed to."
  @type caller :: %{node: node(), terminal: pid() | nil}

  def start_link({%Options{}, _environment} = arguments),
    do: GenServer.start_link(__MODULE__, arguments, name: __MODULE__)

  @doc "A child that starts once the first peer serves, and fails as that peer's boot did."
  @spec await_active() :: :ignore | {:error, term()}
  def await_active, do: GenServer.call(__MODULE__, :await_active, :infinity)

  # What is asked for while a peer is booted waits for that: one request. Any other is refused, as during a swap.

  @doc "Swaps to a tarball. A caller in the outgoing peer gets its answer at cutover."
  @spec upgrade(Path.t(), keyword(), caller()) :: :ok | {:error, term()}
  def upgrade(path, options, caller), do: call({:run, :upgrade, [path, options], caller})

  @doc "Upgrades the active peer in place to a tarball."
  @spec hot_upgrade(Path.t(), keyword(), caller()) :: :ok | {:error, term()}
  def hot_upgrade(path, options, caller), do: call({:run, :hot_upgrade, [path, options], caller})

  @doc "Swaps to a release of the store: that of a version, or with nil the one that served before."
  @spec rollback(String.t() | nil, caller()) :: :ok | {:error, term()}
  def rollback(version, caller), do: call({:run, :rollback, [version], caller})

  @doc "What upgrading the active peer in place to a tarball would change."
  @spec plan(Path.t(), keyword()) :: {:ok, term()} | {:error, term()}
  def plan(path, options) do
    with %BlueGreen{} = context <- call(:context), do: BlueGreen.plan(context, path, options)
  end

  @spec current_vsn() :: String.t() | nil
  def current_vsn, do: GenServer.call(__MODULE__, :current_vsn)

  @spec status() :: %{active_node: node() | nil, upgrading: boolean()}
  def status, do: GenServer.call(__MODULE__, :status)

  # What takes time is found out by the caller.
  @spec info() :: map()
  def info do
    {info, store} = GenServer.call(__MODULE__, :info)
    releases = for release <- Store.releases(store), do: identity(release)
    Map.merge(info, %{releases: releases, store_bytes: Store.size(store)})
  end

  @doc "The roots of the releases that can be asked for on this host: those that peers run, then those of the store."
  @spec release_roots() :: [Path.t()]
  def release_roots do
    {live, store} = GenServer.call(__MODULE__, :release_roots)
    Enum.uniq(live ++ Store.roots(store))
  end

  @spec history() :: [Store.entry()]
  def history do
    {_info, store} = GenServer.call(__MODULE__, :info)
    Store.history(store)
  end

  # Called by the task.

  @doc "A peer was started: it is to be ended should the task be."
  @spec peer_started(Peer.t()) :: :ok
  def peer_started(peer), do: GenServer.call(__MODULE__, {:peer_started, peer})

  @doc "The active peer was seen to have ended. On return it has been cleaned up after."
  @spec peer_ended(Peer.t()) :: :ok
  def peer_ended(peer), do: GenServer.call(__MODULE__, {:peer_ended, peer})

  @doc "New connections go to the incoming peer."
  @spec cut_over(Peer.t(), Peer.t() | nil) :: :ok
  def cut_over(incoming, outgoing),
    do: GenServer.call(__MODULE__, {:cut_over, incoming, outgoing})

  @doc "The active peer runs another release now."
  @spec release_replaced(Release.t()) :: :ok
  def release_replaced(release), do: GenServer.call(__MODULE__, {:release_replaced, release})

  @doc "What `before_cutover` left for `after_cutover`."
  @spec take_cutover_state() :: term()
  def take_cutover_state, do: GenServer.call(__MODULE__, :take_cutover_state)

  @spec put_cutover_state(term()) :: :ok
  def put_cutover_state(state), do: GenServer.call(__MODULE__, {:put_cutover_state, state})

  defp call(request) do
    GenServer.call(__MODULE__, request, :infinity)
  catch
    :exit, {:noproc, _call} -> {:error, :not_running}
  end

  @impl true
  def init({options, environment}) do
    Process.flag(:trap_exit, true)
    state = %__MODULE__{options: options, environment: Map.put(environment, :side, :blue)}
    {:ok, state, {:continue, :boot}}
  end

  @impl true
  def handle_continue(:boot, state) do
    [release | fallbacks] = Store.candidates(state.environment.store)
    {:noreply, start_boot(%{state | release: release, fallbacks: fallbacks}, :blue)}
  end

  @impl true
  def handle_call(:status, _from, state), do: {:reply, describe(state), state}

  def handle_call(:context, _from, state), do: {:reply, context(state), state}

  def handle_call(:current_vsn, _from, state),
    do: {:reply, state.active && state.active.release.version, state}

  def handle_call(:info, _from, state) do
    {:reply, {Map.merge(describe(state), details(state)), state.environment.store}, state}
  end

  def handle_call(:release_roots, _from, state),
    do: {:reply, {Enum.flat_map(peers(state), & &1.roots), state.environment.store}, state}

  def handle_call(:await_active, from, %{start: :pending} = state),
    do: {:noreply, %{state | starter: from}}

  def handle_call(:await_active, _from, state), do: {:reply, state.start, state}

  def handle_call(
        {:run, _function, _arguments, _caller},
        _from,
        %{swap: swap, queued: queued} = state
      )
      when swap != nil or queued != nil,
      do: {:reply, {:error, :upgrade_in_progress}, state}

  # It would wait for a boot that may wait for it.
  def handle_call(
        {:run, _function, _arguments, %{node: node}},
        _from,
        %{booting: %{node: node}} = state
      ),
      do: {:reply, {:error, :no_active_peer}, state}

  def handle_call({:run, function, arguments, caller}, from, state) do
    terminal = caller.terminal && Terminal.start(caller.terminal)

    request = %{
      function: function,
      arguments: arguments,
      caller: {from, caller.node, terminal},
      done?: false
    }

    {:noreply, if(state.active, do: run(state, request), else: queue(state, request))}
  end

  def handle_call({:release_replaced, release}, _from, state) do
    # The peer may have ended with its last answer.
    active = state.active && Peer.replace_release(state.active, release)
    probation = probation(state, release)
    {:reply, :ok, %{state | release: release, active: active, probation: probation, crashes: []}}
  end

  def handle_call({:peer_started, peer}, {pid, _tag}, %{boot: %Task{pid: pid}} = state),
    do: {:reply, :ok, %{state | booting: peer}}

  def handle_call({:peer_started, peer}, _from, state),
    do: {:reply, :ok, %{state | incoming: peer}}

  def handle_call(
        {:peer_ended, %{control: control}},
        _from,
        %{active: %{control: control}} = state
      ),
      do: {:reply, :ok, active_ended(state)}

  def handle_call({:peer_ended, _peer}, _from, state), do: {:reply, :ok, state}

  def handle_call({:cut_over, incoming, outgoing}, _from, state) do
    # A request that asked for the swap may be one that the outgoing peer has to finish: it is answered now.
    {early, callers} =
      Enum.split_with(state.callers, fn {_from, node, _terminal} ->
        outgoing != nil and node == outgoing.node
      end)

    reply_all(early, :ok)

    # How often the release before it ended is nothing to blame it for.
    state = %{
      state
      | callers: callers,
        incoming: nil,
        outgoing: outgoing,
        probation: probation(state, incoming.release),
        crashes: []
    }

    {:reply, :ok, activate(state, incoming)}
  end

  def handle_call({:put_cutover_state, value}, _from, state),
    do: {:reply, :ok, %{state | cutover_state: value}}

  def handle_call(:take_cutover_state, _from, state),
    do: {:reply, state.cutover_state, %{state | cutover_state: nil}}

  @impl true
  def handle_info({ref, result}, %{swap: %Task{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    swap_finished(state, result)
  end

  def handle_info({ref, result}, %{boot: %Task{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    boot_finished(state, result)
  end

  def handle_info({:DOWN, ref, :process, _pid, reason}, %{swap: %Task{ref: ref}} = state) do
    reason = {:crashed, reason}
    :ok = BlueGreen.record_failure(context(state), :blue_green, nil, reason)
    state |> end_swap_peers() |> swap_finished({:error, reason})
  end

  def handle_info({:DOWN, ref, :process, _pid, reason}, %{boot: %Task{ref: ref}} = state),
    do: state |> end_booting() |> boot_finished({:error, {:crashed, reason}})

  def handle_info({:DOWN, ref, :process, _pid, _reason}, %{monitor: ref} = state) do
    side = state.active.side
    state |> active_ended() |> recover(side)
  end

  # Answers of tasks that were ended.
  def handle_info(_message, state), do: {:noreply, state}

  # SIGTERM stops peers and parent in order: what serves is stopped as its supervision tree wants it.
  @impl true
  def terminate(_reason, state) do
    for task <- [state.swap, state.boot], task, do: Task.shutdown(task, :brutal_kill)
    state = state |> end_swap_peers() |> end_booting()
    if state.active, do: Peer.stop(state.active, state.options.shutdown_timeout || :infinity)
    Parent.release(state.environment)
  end

  defp swap_finished(state, result) do
    {answer, state} = outcome(state, result)
    reply_all(state.callers, answer)
    answered = for {{pid, _tag}, _node, _terminal} <- state.callers, do: pid

    state = %{
      state
      | swap: nil,
        callers: [],
        answered: answered,
        incoming: nil,
        outgoing: nil
    }

    # While it ran, the peer that it would have replaced may have ended.
    if state.active || state.boot,
      do: {:noreply, state},
      else: recover(state, state.environment.side)
  end

  defp outcome(state, {:ok, summary}), do: {:ok, %{state | last_swap: summary}}
  defp outcome(state, {:error, reason}), do: {{:error, reason}, state}

  defp boot_finished(state, {:ok, peer}) do
    state = %{state | boot: nil, booting: nil} |> activate(peer) |> started(:ignore)
    {:noreply, run_queued(state)}
  end

  # A machine that starts again must not stay without service because the release that served last has broken. It stays
  # the current one: what failed may be something that is repaired by the next start.
  defp boot_finished(%{start: :pending, fallbacks: [next | rest]} = state, {:error, reason}) do
    Logger.error(
      "beam_deploy: release #{state.release.version} does not boot: #{Error.sentence(reason)}; " <>
        "release #{next.version} is booted in its place, and #{state.release.version} again at the next start"
    )

    :ok = BlueGreen.record_failure(context(state), :boot, state.release, reason)
    {:noreply, start_boot(%{state | booting: nil, release: next, fallbacks: rest}, :blue)}
  end

  # Of the very first boot whoever starts the parent hears; it is not repeated.
  defp boot_finished(%{start: :pending} = state, {:error, reason}) do
    state = refuse_queued(%{state | boot: nil, booting: nil}, reason)
    {:noreply, started(state, {:error, reason})}
  end

  defp boot_finished(state, {:error, reason}) do
    Logger.error(
      "beam_deploy: release #{state.release.version} does not boot again: #{Error.sentence(reason)}"
    )

    recover(%{state | boot: nil, booting: nil}, state.environment.side)
  end

  defp started(%{start: :pending} = state, result) do
    if match?({:error, _reason}, result), do: see_off(state.answered)
    if state.starter, do: GenServer.reply(state.starter, result)
    %{state | start: result, starter: nil}
  end

  defp started(state, _result), do: state

  defp activate(state, peer) do
    if state.monitor, do: Process.demonitor(state.monitor, [:flush])
    environment = Map.put(state.environment, :side, peer.side)

    %{
      state
      | active: peer,
        monitor: Process.monitor(peer.control),
        release: peer.release,
        environment: environment
    }
  end

  defp active_ended(%{active: peer} = state) do
    Process.demonitor(state.monitor, [:flush])
    Logger.error("beam_deploy: the active peer #{peer.node} ended by itself")
    :ok = Peer.clean_up(peer, :ok)
    %{state | active: nil, monitor: nil}
  end

  # A swap that has not cut over will put its own peer in the place of the one that ended; if it fails, this comes again.
  defp recover(%{swap: %Task{}, outgoing: nil} = state, _side), do: {:noreply, state}

  defp recover(state, side) do
    now = System.monotonic_time(:second)
    crashes = [now | Enum.filter(state.crashes, &(now - &1 < state.options.max_seconds))]
    probation = Probation.ended(state.probation)
    state = %{state | crashes: crashes, restarts: state.restarts + 1, probation: probation}

    cond do
      # The whole system stops, and its peers may have been told so before the parent.
      stopping?() ->
        {:noreply, state}

      state.swap == nil and Probation.failed?(probation, state.options.max_restarts) ->
        {:noreply, roll_back(state, side)}

      # What was to be booted again did not come up: before it is tried once more, or given up, comes what was asked for.
      needs_no_peer?(state.queued) ->
        {:noreply, run_queued(state)}

      length(crashes) > state.options.max_restarts ->
        reason = {:peer_keeps_ending, state.release.version}
        state = refuse_queued(state, reason)
        see_off(state.answered)
        {:stop, reason, state}

      true ->
        {:noreply, start_boot(state, side)}
    end
  end

  # What was asked for while no peer served.

  defp queue(state, request) do
    {_from, _node, terminal} = request.caller
    message = "waiting for a peer of release #{state.release.version} that is being booted"
    Logger.info("beam_deploy: #{label(request.function)} #{message}")
    if terminal, do: Terminal.say(terminal, message)
    %{state | queued: request}
  end

  defp label(function), do: function |> to_string() |> String.replace("_", " ")

  defp run_queued(%{queued: nil} = state), do: state
  defp run_queued(%{queued: request} = state), do: run(%{state | queued: nil}, request)

  # A rollback that has happened already.
  defp run(state, %{done?: true, caller: caller}) do
    reply(caller, :ok)
    state
  end

  defp run(state, request) do
    context = %{context(state) | from: state.release}
    task = start_task(request.function, [context | request.arguments])
    %{state | swap: task, callers: [request.caller], cutover_state: nil}
  end

  # A hot upgrade has a peer that it upgrades.
  defp needs_no_peer?(nil), do: false
  defp needs_no_peer?(request), do: request.function != :hot_upgrade and not request.done?

  # At once, whatever its terminal does: the parent is about to end.
  defp refuse_queued(%{queued: nil} = state, _reason), do: state

  defp refuse_queued(%{queued: %{caller: {{pid, _tag} = from, _node, _terminal}}} = state, reason) do
    GenServer.reply(from, {:error, {:peer_boot_failed, reason}})
    %{state | queued: nil, answered: [pid]}
  end

  # The answer ends on a terminal of another node, to which the way is this one.
  defp see_off(pids) do
    timer = Process.send_after(self(), :seen_off, @farewell)
    for monitor <- Enum.map(pids, &Process.monitor/1), do: await_down(monitor)
    Process.cancel_timer(timer)
  end

  defp await_down(monitor) do
    receive do
      {:DOWN, ^monitor, :process, _pid, _reason} -> :ok
      :seen_off -> send(self(), :seen_off)
    end
  end

  # Its second time would go forward again.
  defp mark_rolled_back(%{function: :rollback, arguments: [version]} = request, release)
       when version in [nil, release.version],
       do: %{request | done?: true}

  defp mark_rolled_back(request, _release), do: request

  # Once: what is rolled back to has served before, and is not on probation.
  defp roll_back(%{probation: probation, release: failing} = state, side) do
    reason = {:keeps_ending, probation.crashes, state.options.max_seconds}

    Logger.error(
      "beam_deploy: release #{failing.version} is rolled back to #{probation.previous.version}: " <>
        Error.sentence(reason)
    )

    arguments = [context(%{state | active: nil}), failing, reason, probation.previous, side]
    boot = start_task(:heal, arguments)
    queued = mark_rolled_back(state.queued, probation.previous)
    %{state | probation: nil, release: probation.previous, boot: boot, queued: queued}
  end

  # By the release: the peer that served it may have ended meanwhile.
  defp probation(state, next),
    do: Probation.next(state.probation, state.release, next, state.options.max_seconds)

  defp stopping?, do: match?({:stopping, _progress}, :init.get_status())

  defp start_boot(state, side) do
    %{state | boot: start_task(:boot, [context(%{state | active: nil}), state.release, side])}
  end

  defp start_task(function, arguments),
    do: Task.Supervisor.async_nolink(BeamDeploy.TaskSupervisor, BlueGreen, function, arguments)

  defp context(state) do
    %BlueGreen{
      options: state.options,
      environment: state.environment,
      store: state.environment.store,
      from: state.active && state.active.release,
      outgoing: state.active,
      spared: if(state.probation, do: [state.probation.previous.root], else: [])
    }
  end

  defp end_swap_peers(state) do
    for peer <- [state.incoming, state.outgoing], peer, do: Peer.kill(peer)
    %{state | incoming: nil, outgoing: nil}
  end

  defp end_booting(state) do
    if state.booting, do: Peer.kill(state.booting)
    %{state | booting: nil}
  end

  defp reply_all(callers, answer), do: Enum.each(callers, &reply(&1, answer))

  defp reply({from, _node, nil}, answer), do: GenServer.reply(from, answer)

  defp reply({from, _node, terminal}, answer) do
    arguments = [terminal, from, answer]
    tasks = BeamDeploy.TaskSupervisor
    {:ok, _pid} = Task.Supervisor.start_child(tasks, Terminal, :answer, arguments)
  end

  defp peers(state),
    do: Enum.filter([state.active, state.incoming, state.outgoing, state.booting], & &1)

  defp describe(state),
    do: %{
      active_node: state.active && state.active.node,
      upgrading: state.swap != nil or state.queued != nil
    }

  defp details(state) do
    %{
      parent_node: node(),
      beam_deploy: :beam_deploy |> Application.spec(:vsn) |> to_string(),
      elixir: System.version(),
      otp_release: System.otp_release(),
      base: identity(state.environment.base),
      current: identity(state.release),
      peers: Enum.map(peers(state), &about/1),
      listeners: Listener.info(),
      store: state.environment.store.dir,
      last_swap: state.last_swap,
      restarts: %{
        total: state.restarts,
        recent: length(state.crashes),
        allowed: state.options.max_restarts,
        within_seconds: state.options.max_seconds
      }
    }
  end

  defp about(peer),
    do: %{
      node: peer.node,
      side: peer.side,
      os_pid: peer.os_pid,
      version: peer.release.version,
      otp_release: Platform.otp_release(peer.release.erts_version),
      memory: Peer.memory(peer)
    }

  defp identity(release),
    do: %{version: release.version, sha256: release.sha256, root: release.root}
end
