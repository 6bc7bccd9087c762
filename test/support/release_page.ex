defmodule BeamDeploy.Test.ReleasePage do
  @moduledoc false
  # A directory served on loopback as the page of a release would be.

  @doc "Serves `directory` until the test is over; gives the address."
  def start(directory) do
    # From Elixir 1.15 on, Mix lets code see only the applications that its project names.
    if function_exported?(Mix, :ensure_application!, 1),
      do: apply(Mix, :ensure_application!, [:inets])

    {:ok, _started} = Application.ensure_all_started(:inets)
    directory = to_charlist(directory)

    options = [
      port: 0,
      bind_address: {127, 0, 0, 1},
      server_name: ~c"releases",
      server_root: directory,
      document_root: directory
    ]

    # Not called directly: this project does not depend on :inets, and the compiler would say so.
    {:ok, server} = apply(:inets, :start, [:httpd, options])
    ExUnit.Callbacks.on_exit(fn -> apply(:inets, :stop, [:httpd, server]) end)
    [port: port] = apply(:httpd, :info, [server, [:port]])
    "http://127.0.0.1:#{port}"
  end
end
