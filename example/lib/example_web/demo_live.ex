defmodule ExampleWeb.DemoLive do
  @moduledoc """
  The page. It holds nothing but the click counter's value: what it shows is asked of the parent twice a second, so a view
  that has just connected to another peer shows what the one before it did.
  """
  use Phoenix.LiveView

  import ExampleWeb.{Chart, Parts}

  alias Example.{Board, Counter, Deployer, Parent}
  alias ExampleWeb.Cards

  @refresh 500

  @impl true
  def mount(_params, _session, socket) do
    if connected?(socket), do: {:ok, _timer} = :timer.send_interval(@refresh, :refresh)
    {:ok, socket |> assign(cards: Cards.all(), refused: nil) |> refresh()}
  end

  @impl true
  def handle_info(:refresh, socket), do: {:noreply, refresh(socket)}

  @impl true
  def handle_event("count", _params, socket),
    do: {:noreply, assign(socket, count: Counter.increment())}

  def handle_event("deploy", %{"card" => id, "kind" => kind}, socket) do
    case {Cards.find(id), kind} do
      {nil, _kind} -> {:noreply, socket}
      {card, "blue_green"} -> ask(socket, :deploy, [:blue_green, Map.delete(card, :id)])
      {card, "hot"} -> ask(socket, :deploy, [:hot, Map.delete(card, :id)])
    end
  end

  def handle_event("rollback", _params, socket), do: ask(socket, :rollback, [])

  defp ask(socket, function, arguments) do
    refused =
      case Parent.call(Deployer, function, arguments) do
        :ok -> nil
        {:error, :busy} -> "Another deploy is under way."
      end

    {:noreply, socket |> assign(refused: refused) |> refresh()}
  end

  defp refresh(socket) do
    board = Parent.call(Board, :snapshot, [])
    job = board.deploys.job

    assign(socket,
      board: board,
      job: job,
      busy: board.upgrading or (job != nil and job.status == :running),
      count: Counter.value(),
      label: Example.label(),
      hue: Example.hue(),
      version: Example.version(),
      node: node(),
      switches: switches(board.deploys)
    )
  end

  defp switches(%{job: job, history: history}),
    do: [job | history] |> Enum.reject(&is_nil/1) |> Enum.map(& &1.switched_at) |> Enum.uniq()

  @impl true
  def render(assigns) do
    ~H"""
    <div class="page" style={"--hue: #{@hue}"}>
      <header class="top">
        <p class="brand">
          <span class="dot" aria-hidden="true"></span> BeamDeploy <span>example</span>
        </p>
        <p class="link" role="status"><span>reconnecting</span></p>
      </header>

      <main>
        <section class="hero" aria-labelledby="release">
          <div>
            <p class="eyebrow">This page is served by</p>
            <h1 id="release">Release <span data-test="version">{@version}</span></h1>
            <p class="muted">
              Click a release below: the application builds it from its own source, boots it beside this one, hands over
              the port and stops this one. The number on the button goes along.
            </p>
          </div>
          <button class="count" type="button" phx-click="count" data-test="count">
            <span data-test="label">{@label}</span>
            <strong data-test="number">{@count}</strong>
          </button>
        </section>

        <section class="panel" aria-labelledby="traffic">
          <div class="panel-head">
            <h2 id="traffic">Requests per second</h2>
            <dl class="figures">
              <div>
                <dt>requests</dt>
                <dd data-test="requests">{@board.probes.requests}</dd>
              </div>
              <div class={@board.probes.failed > 0 && "bad"}>
                <dt>failed</dt>
                <dd data-test="failed">{@board.probes.failed}</dd>
              </div>
              <div>
                <dt>slowest, 90 s</dt>
                <dd>{slowest(@board.probes.seconds)}</dd>
              </div>
            </dl>
          </div>
          <.chart
            seconds={@board.probes.seconds}
            versions={@board.deploys.versions}
            switches={@switches}
          />
          <.legend seconds={@board.probes.seconds} versions={@board.deploys.versions} />
        </section>

        <.job job={@job} />

        <section aria-labelledby="releases">
          <div class="panel-head">
            <h2 id="releases">Deploy</h2>
            <button
              class="plain"
              type="button"
              phx-click="rollback"
              disabled={@busy}
              data-test="rollback"
            >
              Roll back
            </button>
          </div>
          <p :if={@refused} class="error" role="alert">{@refused}</p>
          <ul class="cards">
            <.card :for={card <- @cards} card={card} busy={@busy} />
          </ul>
        </section>

        <div class="columns">
          <section class="panel" aria-labelledby="nodes">
            <h2 id="nodes">Nodes</h2>
            <.nodes board={@board} node={@node} versions={@board.deploys.versions} />
          </section>
          <section class="panel" aria-labelledby="history">
            <h2 id="history">History</h2>
            <.history history={@board.deploys.history} />
          </section>
        </div>
      </main>
    </div>
    """
  end
end
