defmodule Example.Application do
  @moduledoc false
  use Application

  # These live on the parent: a swap neither stops the build that led to it nor the prober that watches it.
  @parent [{Task.Supervisor, name: Example.Tasks}, Example.Prober, Example.Deployer]

  @impl true
  def start(_type, _args) do
    BeamDeploy.start_link(@parent,
      otp_app: :example,
      start: {__MODULE__, :start_tree, []},
      after_cutover: {Example.Counter, :after_cutover, []}
    )
  end

  def start_tree do
    :ok = Example.check!()
    :ok = Example.Progress.attach(Example.Parent.node())

    Supervisor.start_link(parent_here() ++ [Example.Counter, ExampleWeb.Endpoint],
      strategy: :one_for_one,
      name: Example.Supervisor
    )
  end

  # `mix run` has no parent: everything is in one node, and upgrades say that they are not possible.
  defp parent_here, do: if(BeamDeploy.enabled?(), do: [], else: @parent)
end
