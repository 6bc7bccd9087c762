defmodule Example.Board do
  @moduledoc """
  All that the page shows of the parent, in one call. Called on the parent; a peer of any version reads it.
  """

  def snapshot do
    # In this order: where the deploy is over, what it asked BeamDeploy for is as well.
    deploys = Example.Deployer.snapshot()
    info = BeamDeploy.info()

    %{
      deploys: deploys,
      probes: Example.Prober.snapshot(),
      parent: node(),
      active: info[:active_node],
      upgrading: info[:upgrading] || false,
      current: info[:current][:version],
      base: info[:base][:version],
      peers: info[:peers] || []
    }
  end
end
