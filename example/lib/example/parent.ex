defmodule Example.Parent do
  @moduledoc """
  The parent node, as a peer sees it. The parent runs the release that it was started with: what is called there keeps its
  name, its arguments and its answer, and these are plain terms.
  """

  def node, do: Map.get(BeamDeploy.info(), :parent_node, Kernel.node())

  @doc "Calls a function on the parent."
  def call(module, function, arguments),
    do: :erpc.call(__MODULE__.node(), module, function, arguments, 5_000)
end
