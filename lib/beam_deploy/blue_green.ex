defmodule BeamDeploy.BlueGreen do
  @moduledoc false
  # Responsible for: the order of a swap's phases and what is undone when one fails. Runs in a task of the coordinator.
  # Not for: how a step works, or who may start one.

  alias BeamDeploy.{Error, Events, HotUpgrade, Options, Release}
  alias BeamDeploy.BlueGreen.{Coordinator, Handoff, Listener, Peer, Settle}
  alias BeamDeploy.Release.{Archive, Signature, Store}

  require Logger

  @health_interval 100

  @enforce_keys [:options, :environment, :store]
  defstruct [:options, :environment, :store, :from, :outgoing, spared: [], kind: :blue_green]

  @type t :: %__MODULE__{
          options: Options.t(),
          environment: map(),
          store: Store.t(),
          # The release to serve, and its peer where there is one.
          from: Release.t() | nil,
          outgoing: Peer.t() | nil,
          # Roots of releases that may yet be gone back to.
          spared: [Path.t()],
          # What the history calls it.
          kind: :blue_green | :hot | :rollback
        }

  @typedoc "Versions, and the milliseconds that each phase took, in their order."
  @type summary :: %{from: String.t(), to: String.t(), phases: [{atom(), float()}]}

  @doc "Swaps the outgoing peer for one of the release in a tarball."
  @spec upgrade(t(), Path.t(), keyword()) :: {:ok, summary()} | {:error, term()}
  def upgrade(%__MODULE__{} = swap, path, options) do
    attempt(swap, :upgrade, fn ->
      with {:ok, options} <- phase(:verify, %{}, fn -> verify(swap, path, options) end),
           {:ok, release} <- phase(:stage, %{}, fn -> stage(swap, path, options) end) do
        with {:error, reason} <- swap(swap, release) do
          :ok = Store.discard(swap.store, release)
          {:error, release, reason}
        end
      end
    end)
  end

  @doc "Swaps back to a release of the store: that of a version, or with nil the one that served before."
  @spec rollback(t(), String.t() | nil) :: {:ok, summary()} | {:error, term()}
  def rollback(%__MODULE__{} = swap, version) do
    swap = %{swap | kind: :rollback}

    attempt(swap, :rollback, fn ->
      with {:ok, release} <-
             phase(:verify, %{}, fn -> Store.target(swap.store, version, swap.from) end) do
        with :ok <-
               phase(:stage, %{version: release.version}, fn -> Release.check_whole(release) end),
             {:ok, summary} <- swap(swap, release) do
          {:ok, summary}
        else
          {:error, reason} -> {:error, release, reason}
        end
      end
    end)
  end

  @doc "Boots the release that served before in place of one that keeps ending, and makes it current."
  @spec heal(t(), Release.t(), term(), Release.t(), Listener.side()) ::
          {:ok, Peer.t()} | {:error, term()}
  def heal(%__MODULE__{} = swap, failing, reason, release, side) do
    metadata = %{action: :self_healing, from: failing.version, to: release.version}
    :ok = record_failure(swap, :boot, failing, reason)

    healed =
      Events.run(:swap, metadata, fn ->
        with {:ok, peer} <- boot(swap, release, side) do
          ids = %{from: Release.id(failing), to: Release.id(release)}
          promote(swap, release, Map.merge(ids, %{kind: :rollback, outcome: :ok}), peer.roots)
          {:ok, %{peer: peer}}
        end
      end)

    with {:ok, %{peer: peer}} <- healed, do: {:ok, peer}
  end

  @doc """
  Swaps the outgoing peer for one of a release that is staged already. Where none serves, the new one takes its place:
  on its side, where connections wait.
  """
  @spec swap(t(), Release.t()) :: {:ok, summary()} | {:error, term()}
  def swap(%__MODULE__{outgoing: nil} = swap, release) do
    with {:ok, incoming} <- boot(swap, release, swap.environment.side) do
      :ok = Coordinator.cut_over(incoming, nil)
      phase(:finish, about(incoming), fn -> complete(swap, incoming) end)
      {:ok, summary(swap, incoming)}
    end
  end

  def swap(%__MODULE__{outgoing: outgoing} = swap, release) do
    side = other(outgoing.side)

    with {:ok, incoming} <- bring_up(swap, release, side),
         :ok <- check_outgoing(outgoing, incoming),
         :ok <- hand_over(outgoing, incoming, swap.options.drain_timeout) do
      finish(swap, outgoing, incoming)
    else
      {:in_its_place, incoming} ->
        take_its_place(swap, incoming, release)

      {:error, reason} ->
        # Addresses that only the new version would have served.
        give_up(side)
        {:error, reason}
    end
  end

  # Since the outgoing peer ended, all who came wait in its queue. Where ports are shared the queue went with the peer,
  # and the incoming one has connections by now.
  defp check_outgoing(outgoing, incoming) do
    if Peer.alive?(outgoing) or Listener.info().mode == :overlap,
      do: :ok,
      else: {:in_its_place, incoming}
  end

  # A connection cannot change its queue, but the release can be booted on the side of the queue.
  defp take_its_place(%{outgoing: outgoing} = swap, incoming, release) do
    Logger.warning(
      "beam_deploy: #{outgoing.node} ended during the swap; release #{release.version} is booted once more, in its " <>
        "place, where connections wait"
    )

    :killed = Peer.kill(incoming)
    give_up(incoming.side)
    # What is cleaned up after the one that ended bears the names of what comes next.
    :ok = Coordinator.peer_ended(outgoing)
    swap(%{swap | outgoing: nil}, release)
  end

  defp hand_over(outgoing, incoming, timeout) do
    with {:error, reason} <-
           phase(:cutover, about(incoming), fn -> cut_over(outgoing, incoming, timeout) end) do
      :killed = Peer.kill(incoming)
      {:error, reason}
    end
  end

  @doc """
  Upgrades the active peer in place. The whole release is staged as for a swap: from there its code is loaded, and the
  next peer is booted.
  """
  @spec hot_upgrade(t(), Path.t(), keyword()) :: {:ok, summary()} | {:error, term()}
  def hot_upgrade(%__MODULE__{outgoing: peer} = swap, path, options) do
    swap = %{swap | kind: :hot}

    remember(swap, fn ->
      with {:ok, admitted} <- verify(swap, path, Keyword.take(options, [:sha256])),
           {:ok, release} <- stage(swap, path, admitted) do
        # The peer reads the tarball once more, and takes nothing but what was staged.
        staged = [release_root: release.root, sha256: release.sha256]

        case in_place(peer, :hot_upgrade_here, [path, Keyword.merge(options, staged)]) do
          :ok ->
            :ok = Coordinator.release_replaced(release)
            record(swap, release, [release.root | peer.roots])
            {:ok, %{from: peer.release.version, to: release.version, phases: []}}

          {:error, reason} ->
            :ok = Store.discard(swap.store, release)
            {:error, release, reason}
        end
      end
    end)
  end

  @doc "What `hot_upgrade/3` would change in the active peer, and whether it should. Changes nothing."
  @spec plan(t(), Path.t(), keyword()) :: {:ok, HotUpgrade.Plan.t()} | {:error, term()}
  def plan(%__MODULE__{outgoing: nil}, _path, _options), do: {:error, :no_active_peer}

  def plan(%__MODULE__{outgoing: peer} = context, path, options) do
    with {:ok, admitted} <- verify(context, path, Keyword.take(options, [:sha256])),
         do: in_place(peer, :plan_here, [path, Keyword.merge(options, admitted)])
  end

  defp in_place(peer, function, arguments) do
    case Peer.call(peer, function, arguments, :infinity) do
      {:ok, answer} -> answer
      {:error, :noconnection} -> {:error, :no_active_peer}
      {:error, reason} -> {:error, {:crashed, reason}}
    end
  end

  @doc "Boots a release on a side where nothing has to be replaced: the first peer, or one after a crash."
  @spec boot(t(), Release.t(), Listener.side()) :: {:ok, Peer.t()} | {:error, term()}
  def boot(%__MODULE__{} = swap, release, side) do
    with {:ok, peer} <- bring_up(swap, release, side),
         :ok <- Listener.cutover(side) do
      Peer.attach_output(peer)
      {:ok, peer}
    end
  end

  # A swap as the world sees it: its events, and its line in the history.
  defp attempt(swap, action, function) do
    :ok = Handoff.clear()
    metadata = %{action: action, from: swap.from.version}
    Events.run(:swap, metadata, fn -> remember(swap, function) end)
  end

  # What becomes current is recorded where it does; here is what does not.
  defp remember(swap, function) do
    case function.() do
      {:ok, summary} ->
        {:ok, summary}

      {:error, release, reason} ->
        :ok = record_failure(swap, swap.kind, release, reason)
        {:error, reason}

      {:error, reason} ->
        :ok = record_failure(swap, swap.kind, nil, reason)
        {:error, reason}
    end
  end

  @doc "Adds an attempt that came to nothing to the history."
  @spec record_failure(t(), atom(), Release.t() | nil, term()) :: :ok
  def record_failure(swap, kind, release, reason) do
    entry = %{
      kind: kind,
      from: swap.from && Release.id(swap.from),
      to: release && Release.id(release),
      outcome: {:error, Error.sentence(reason)}
    }

    with {:error, failure} <- Store.record(swap.store, entry), do: complain(failure)
  end

  defp verify(swap, path, options) do
    with :ok <- Archive.verify(path, options),
         do: Signature.admit(path, swap.options.verify, options)
  end

  defp stage(swap, path, options) do
    Archive.stage(path, swap.store, [otp_app: swap.options.otp_app] ++ options)
  end

  # boot and health: until both are over not one new connection reaches the peer.
  defp bring_up(swap, release, side) do
    context =
      Map.merge(swap.environment, %{
        side: side,
        outgoing: swap.outgoing && swap.outgoing.node,
        preload: preload(swap)
      })

    with {:ok, peer} <-
           phase(:boot, %{version: release.version}, fn -> start(swap, release, context) end) do
      case phase(:health, about(peer), fn -> await_healthy(swap.options, peer) end) do
        :ok ->
          {:ok, peer}

        {:error, reason} ->
          :killed = Peer.kill(peer)
          {:error, reason}
      end
    end
  end

  # The next version will need nearly the same modules to start as the one that runs.
  defp preload(%{outgoing: nil}), do: ""

  defp preload(%{outgoing: outgoing}) do
    case Peer.call(outgoing, :startup_modules, [], 5_000) do
      {:ok, modules} -> modules
      # An outgoing peer that does not answer is a reason more to replace it.
      {:error, _reason} -> ""
    end
  end

  defp start(swap, release, context) do
    with {:ok, peer} <- Peer.start(release, context) do
      Coordinator.peer_started(peer)

      with {:error, reason} <- Peer.await_started(peer, swap.options.boot_timeout) do
        :killed = Peer.kill(peer)
        {:error, reason}
      else
        :ok -> {:ok, peer}
      end
    end
  end

  # Addresses that nobody else serves, and connections that nobody will accept any more.
  defp give_up(side) do
    with {:ok, discarded} when discarded > 0 <- Listener.release(side) do
      Logger.warning("beam_deploy: #{discarded} connections came too late and were reset")
    end
  end

  defp await_healthy(options, peer) do
    # All modules, as a release in embedded mode has them: the first requests must not wait for their loading.
    with {:ok, :ok} <- call_alive(peer, :load_modules, [], options.boot_timeout),
         do: check_health(peer, deadline(options.health_timeout))
  end

  defp call_alive(peer, function, arguments, timeout) do
    case Peer.call(peer, function, arguments, timeout) do
      {:ok, answer} -> {:ok, answer}
      # It ends: what it prints says more.
      {:error, :noconnection} -> {:error, {:boot_failed, Peer.details_at_end(peer)}}
      {:error, reason} -> {:error, {:boot_failed, Map.put(Peer.details(peer), :reason, reason)}}
    end
  end

  # A check that is cut off by the deadline says less than the answer before it.
  defp check_health(peer, deadline, last \\ nil) do
    case Peer.call(peer, :check_health, [], remaining(deadline)) do
      {:ok, passed} when passed in [:ok, true] -> :ok
      {:error, :timeout} -> retry_health(peer, deadline, last || {:error, :timeout})
      answer -> retry_health(peer, deadline, answer)
    end
  end

  defp retry_health(peer, deadline, answer) do
    cond do
      not Peer.alive?(peer) ->
        {:error, {:boot_failed, Peer.details(peer)}}

      remaining(deadline) == 0 ->
        {:error, {:health_check_failed, Map.put(Peer.details(peer), :answer, untag(answer))}}

      true ->
        Process.sleep(@health_interval)
        check_health(peer, deadline, answer)
    end
  end

  defp untag({:ok, answer}), do: answer
  defp untag({:error, reason}), do: {:error, reason}

  # Until the old side has settled one call sends all connections back to it.
  defp cut_over(outgoing, incoming, timeout) do
    _ = Peer.call(outgoing, :put_counterpart, [:incoming, incoming.node], 5_000)

    with :ok <- Listener.cutover(incoming.side),
         :ok <- settle(outgoing, incoming, timeout) do
      # Before that, what it prints is part of the error.
      Peer.attach_output(incoming)
      Coordinator.cut_over(incoming, outgoing)
    else
      {:error, reason} -> go_back(outgoing, reason)
    end
  end

  defp settle(outgoing, incoming, timeout) do
    case Settle.await(outgoing.side, fn -> ended(outgoing, incoming) end, timeout) do
      {:stopped, :incoming} -> {:error, {:boot_failed, Peer.details(incoming)}}
      # Nothing is left to wait for.
      {:stopped, :outgoing} -> :ok
      :ok -> :ok
    end
  end

  defp ended(outgoing, incoming) do
    cond do
      not Peer.alive?(incoming) -> :incoming
      not Peer.alive?(outgoing) -> :outgoing
      true -> nil
    end
  end

  defp go_back(outgoing, reason) do
    :ok = Listener.cutover(outgoing.side)
    _ = Peer.call(outgoing, :put_counterpart, [:incoming, nil], 5_000)
    {:error, reason}
  end

  # No way back from here: what fails now is said in the log, and the new version serves.
  defp finish(swap, outgoing, incoming) do
    phase(:drain, about(outgoing), fn ->
      drain(outgoing, swap.options.drain_timeout)
    end)

    phase(:stop, about(outgoing), fn -> stop(outgoing, swap.options.shutdown_timeout) end)
    give_up(outgoing.side)
    phase(:finish, about(incoming), fn -> complete(swap, incoming) end)

    {:ok, summary(swap, incoming)}
  end

  defp summary(swap, incoming),
    do: %{from: swap.from.version, to: incoming.release.version, phases: Events.timings()}

  # Whatever becomes of it, the next step is to stop the peer. One that is frozen does not even say its version.
  defp drain(outgoing, timeout) do
    with {:ok, _version} <- Peer.call(outgoing, :version, [], 5_000),
         {:ok, result} <- Peer.call(outgoing, :drain, [timeout], later(timeout, 5_000)) do
      result
    else
      {:error, reason} ->
        Logger.warning("beam_deploy: #{outgoing.node} could not be drained: #{inspect(reason)}")
    end
  end

  defp stop(outgoing, timeout) do
    with :killed <- Peer.stop(outgoing, timeout || :infinity) do
      Logger.warning("beam_deploy: #{outgoing.node} did not stop in time and was killed")
      :killed
    end
  end

  defp complete(swap, incoming) do
    _ = Peer.call(incoming, :put_counterpart, [:outgoing, nil], 5_000)
    # First: should the hook hang and the parent be restarted for it, it serves what serves now.
    record(swap, incoming.release, incoming.roots)
    after_cutover(incoming, swap.options.boot_timeout)
  end

  defp record(swap, release, live) do
    entry = %{
      kind: swap.kind,
      from: Release.id(swap.from),
      to: Release.id(release),
      outcome: :ok
    }

    promote(swap, release, entry, live)
  end

  defp promote(swap, release, entry, live) do
    with :ok <- Store.promote(swap.store, release, entry),
         {:ok, _pruned} <-
           Store.prune(swap.store, swap.options.keep_releases, live ++ swap.spared) do
      :ok
    else
      {:error, reason} -> complain(reason)
    end
  end

  defp complain(reason) do
    Logger.error(
      "beam_deploy: the store of releases could not be brought up to date: #{inspect(reason)}"
    )
  end

  defp after_cutover(incoming, timeout) do
    state = Coordinator.take_cutover_state()

    case Peer.call(incoming, :after_cutover, [state], timeout) do
      {:ok, _ignored} ->
        :ok

      {:error, :timeout} ->
        Logger.error(
          "beam_deploy: after_cutover has not returned within #{timeout} ms and is waited for no longer"
        )

      {:error, reason} ->
        Logger.error("beam_deploy: after_cutover failed: #{inspect(reason)}")
    end
  end

  defp phase(phase, metadata, function), do: Events.span(:swap, phase, metadata, function)

  defp about(peer), do: %{version: peer.release.version, node: peer.node}

  defp other(:blue), do: :green
  defp other(:green), do: :blue

  defp now, do: System.monotonic_time(:millisecond)

  defp deadline(:infinity), do: :infinity
  defp deadline(timeout), do: now() + timeout

  defp later(:infinity, _more), do: :infinity
  defp later(timeout, more), do: timeout + more

  defp remaining(:infinity), do: :infinity
  defp remaining(deadline), do: max(deadline - now(), 0)
end
