defmodule ExampleWeb.Parts do
  @moduledoc "The parts of the page."
  use Phoenix.Component

  attr :card, :map, required: true
  attr :busy, :boolean, required: true

  def card(assigns) do
    ~H"""
    <li class={["card", @card.fault != "none" && "faulty"]} style={"--hue: #{@card.hue}"}>
      <h3>{@card.label}</h3>
      <p class="muted">{describe(@card.fault)}</p>
      <div class="actions">
        <button
          type="button"
          phx-click="deploy"
          phx-value-card={@card.id}
          phx-value-kind="blue_green"
          disabled={@busy}
          data-test={"deploy-#{@card.id}"}
          aria-label={"Deploy #{@card.label}"}
        >
          Deploy
        </button>
        <button
          :if={@card.fault == "none"}
          class="plain"
          type="button"
          phx-click="deploy"
          phx-value-card={@card.id}
          phx-value-kind="hot"
          disabled={@busy}
          data-test={"hot-#{@card.id}"}
          aria-label={"Hot upgrade to #{@card.label}"}
        >
          Hot upgrade
        </button>
      </div>
    </li>
    """
  end

  attr :job, :map, required: true, doc: "nil before the first deploy"

  def job(%{job: nil} = assigns) do
    ~H"""
    <section class="panel" aria-labelledby="job">
      <div class="panel-head">
        <h2 id="job">Progress</h2>
      </div>
      <p class="muted empty">Nothing is under way. Choose a release below.</p>
    </section>
    """
  end

  def job(assigns) do
    ~H"""
    <section
      class={["panel", "job", @job.status]}
      aria-labelledby="job"
      style={@job.hue && "--hue: #{@job.hue}"}
    >
      <div class="panel-head">
        <h2 id="job">{title(@job)}</h2>
        <p class={["state", @job.status]} role="status" data-test="job-status">{state(@job)}</p>
      </div>
      <ol class="steps">
        <li :for={step <- @job.steps} class={step.status} data-test={"step-#{step.name}"}>
          <span class="mark" aria-hidden="true"></span>
          <span class="name">{step.name}</span>
          <span class="ms">{step_time(step)}</span>
        </li>
      </ol>
      <.failure :if={@job.error} error={@job.error} />
      <details :if={@job.log != []} open={build_failed?(@job)} id={"log-#{@job.id}-#{@job.status}"}>
        <summary>Output of the build</summary>
        <pre tabindex="0">{@job.log |> Enum.reverse() |> Enum.join("\n")}</pre>
      </details>
    </section>
    """
  end

  attr :error, :string, required: true

  # The first line is the sentence; what follows it is what the new release printed.
  defp failure(assigns) do
    [sentence | output] = String.split(assigns.error, "\n")
    assigns = assign(assigns, sentence: sentence, output: Enum.join(output, "\n"))

    ~H"""
    <p class="error" role="alert" data-test="job-error">{@sentence}</p>
    <pre :if={@output != ""} tabindex="0">{@output}</pre>
    """
  end

  attr :board, :map, required: true
  attr :node, :atom, required: true
  attr :versions, :map, required: true

  def nodes(assigns) do
    ~H"""
    <ul class="nodes">
      <li>
        <span class="role">parent</span>
        <code>{@board.parent}</code>
        <span class="muted">{@board.base || "not in parent/peer mode"}</span>
      </li>
      <li :for={peer <- @board.peers} style={"--hue: #{hue(@versions, peer.version)}"}>
        <span class="role peer">{role(peer, @board)}</span>
        <code data-test={peer.node == @board.active && "active-node"}>{peer.node}</code>
        <span class="muted">{peer.version}, pid {peer.os_pid}</span>
      </li>
    </ul>
    <p class="muted">You are connected to <code data-test="node">{@node}</code>.</p>
    """
  end

  attr :history, :list, required: true

  def history(assigns) do
    ~H"""
    <p :if={@history == []} class="muted">Nothing has been deployed yet.</p>
    <ol :if={@history != []} class="history" data-test="history">
      <li :for={job <- @history} class={job.status}>
        <span class="what">{title(job)}</span>
        <span class="muted">
          {seconds(job.finished_at - job.started_at)}, {failures(job.failed_requests)}
        </span>
        <span class={["state", job.status]}>{job.status}</span>
      </li>
    </ol>
    """
  end

  attr :seconds, :list, required: true
  attr :versions, :map, required: true

  def legend(assigns) do
    assigns =
      assign(assigns,
        shown:
          assigns.seconds |> Enum.flat_map(&Map.keys(&1.answered)) |> Enum.uniq() |> Enum.sort()
      )

    ~H"""
    <ul class="legend">
      <li :for={version <- @shown} style={"--hue: #{hue(@versions, version)}"}>
        <span class="swatch" aria-hidden="true"></span>
        {version} {label(@versions, version)}
      </li>
      <li><span class="swatch failed" aria-hidden="true"></span> failed</li>
      <li><span class="swatch switch" aria-hidden="true"></span> another release takes over</li>
    </ul>
    """
  end

  def slowest(seconds) do
    case seconds |> Enum.map(& &1.slowest) |> Enum.max(fn -> 0 end) do
      0 -> "–"
      us -> "#{Float.round(us / 1000, 1)} ms"
    end
  end

  defp describe("none"), do: "A new label and colour, compiled in."
  defp describe("compile"), do: "The build fails. Nothing else happens."
  defp describe("boot"), do: "The new node ends. This one goes on."

  # What ran after the build tells more of its own failure than the build does.
  defp build_failed?(job),
    do: Enum.any?(job.steps, &(&1.name in [:compile, :assemble, :tar] and &1.status == :failed))

  defp title(%{kind: :rollback}), do: "Roll back"
  defp title(%{kind: :hot} = job), do: "Hot upgrade to #{job.version}, #{job.label}"
  defp title(job), do: "Deploy #{job.version}, #{job.label}"

  defp state(%{status: :running} = job) do
    case Enum.find(job.steps, &(&1.status == :running)) do
      nil -> "running"
      step -> to_string(step.name)
    end
  end

  defp state(%{status: :failed}), do: "failed"
  defp state(job), do: "done, #{failures(job.failed_requests)}"

  defp failures(1), do: "1 request failed"
  defp failures(count), do: "#{count} requests failed"

  defp step_time(%{ms: nil}), do: ""
  defp step_time(%{ms: ms}) when ms >= 1000, do: seconds(ms)
  defp step_time(%{ms: ms}), do: "#{ms} ms"

  defp seconds(ms), do: "#{Float.round(ms / 1000, 1)} s"

  defp role(%{node: node}, %{active: node}), do: "active"
  defp role(_peer, _board), do: "other"

  defp hue(versions, version), do: Map.get(versions, version, %{hue: 0}).hue
  defp label(versions, version), do: Map.get(versions, version, %{label: ""}).label
end
