defmodule ExampleWeb.Probe do
  @moduledoc "What the prober asks for: which release answers."
  import Plug.Conn

  def init(options), do: options

  def call(%{path_info: ["probe"]} = conn, _options),
    do: conn |> send_resp(200, "release #{Example.version()} end") |> halt()

  def call(conn, _options), do: conn
end
