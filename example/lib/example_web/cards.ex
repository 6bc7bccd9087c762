defmodule ExampleWeb.Cards do
  @moduledoc """
  The releases on offer: what the button of each says, and its colour. The last two show what happens when things go wrong.
  """

  @cards [
    %{id: "high-five", label: "High five", hue: 155, fault: "none"},
    %{id: "ship-it", label: "Ship it", hue: 45, fault: "none"},
    %{id: "cheers", label: "Cheers", hue: 320, fault: "none"},
    %{id: "bravo", label: "Bravo", hue: 210, fault: "none"},
    %{id: "no-compile", label: "Does not compile", hue: 25, fault: "compile"},
    %{id: "no-boot", label: "Does not start", hue: 25, fault: "boot"}
  ]

  def all, do: @cards

  @doc "What the deployer takes of a card; nil for one that does not exist."
  def find(id), do: Enum.find(@cards, &(&1.id == id))
end
