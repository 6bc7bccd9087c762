defmodule ExampleWeb.Chart do
  @moduledoc """
  Requests per second as bars: one colour for each release that answered, red for what failed.
  """
  use Phoenix.Component

  @width 720
  @height 160
  @gap 1

  attr :seconds, :list, required: true, doc: "as of `Example.Prober.snapshot/0`"
  attr :versions, :map, required: true, doc: "version => %{label, hue}"
  attr :switches, :list, required: true, doc: "when another release took over, in ms"

  def chart(assigns) do
    top = assigns.seconds |> Enum.map(&total/1) |> Enum.max(fn -> 0 end) |> max(10)
    step = @width / max(length(assigns.seconds), 1)

    assigns =
      assign(assigns,
        width: @width,
        height: @height,
        top: top,
        bars: bars(assigns.seconds, top, step),
        marks: marks(assigns.switches, assigns.seconds, step),
        summary: summary(assigns.seconds)
      )

    ~H"""
    <svg
      class="chart"
      viewBox={"0 0 #{@width} #{@height + 4}"}
      preserveAspectRatio="none"
      role="img"
      aria-label={@summary}
    >
      <line class="grid" x1="0" x2={@width} y1={@height} y2={@height} />
      <line class="grid faint" x1="0" x2={@width} y1={@height / 2} y2={@height / 2} />
      <path
        :for={{version, path} <- @bars}
        class={if version == :failed, do: "failed", else: "answered"}
        style={"--hue: #{hue(@versions, version)}"}
        d={path}
      />
      <line :for={x <- @marks} class="switch" x1={x} x2={x} y1="0" y2={@height} />
    </svg>
    """
  end

  # One path for each release, of a rectangle for each second in which it answered.
  defp bars(seconds, top, step) do
    seconds
    |> Enum.with_index()
    |> Enum.flat_map(fn {second, index} -> stack(second, index * step, @height / top, step) end)
    |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))
    |> Enum.map(fn {version, rectangles} -> {version, Enum.join(rectangles)} end)
    |> Enum.sort()
  end

  defp stack(second, x, scale, step) do
    parts = Enum.sort(second.answered) ++ [{:failed, second.failed}]

    {rectangles, _top} =
      Enum.map_reduce(parts, @height * 1.0, fn {version, count}, base ->
        height = count * scale
        {{version, rectangle(x, base - height, step - @gap, height)}, base - height}
      end)

    Enum.reject(rectangles, fn {_version, rectangle} -> rectangle == "" end)
  end

  defp rectangle(_x, _y, _width, height) when height == 0, do: ""

  defp rectangle(x, y, width, height),
    do: "M#{round1(x)} #{round1(y)}h#{round1(width)}v#{round1(height)}h-#{round1(width)}z"

  defp marks(_switches, [], _step), do: []

  defp marks(switches, [first | _] = seconds, step) do
    for at <- switches,
        at,
        x = (at / 1000 - first.at) * step,
        x >= 0 and x <= step * length(seconds),
        do: round1(x)
  end

  defp summary(seconds) do
    "Requests per second, last #{length(seconds)} seconds: " <>
      "#{Enum.sum(Enum.map(seconds, &total/1))} requests, #{Enum.sum(Enum.map(seconds, & &1.failed))} failed"
  end

  defp total(second), do: second.failed + (second.answered |> Map.values() |> Enum.sum())

  defp hue(versions, version) do
    case versions do
      %{^version => %{hue: hue}} -> hue
      _unknown -> 0
    end
  end

  defp round1(number), do: Float.round(number * 1.0, 1)
end
