defmodule ExampleWeb.Endpoint do
  use Phoenix.Endpoint, otp_app: :example

  @session [store: :cookie, key: "_example", signing_salt: "t2Wq8RzL", same_site: "Lax"]

  socket "/live", Phoenix.LiveView.Socket, websocket: [connect_info: [session: @session]]

  plug ExampleWeb.Probe

  # The client libraries come with the dependencies, so no build step is needed for them.
  plug Plug.Static, at: "/vendor/phoenix", from: :phoenix, only: ~w(phoenix.min.js)

  plug Plug.Static,
    at: "/vendor/live_view",
    from: :phoenix_live_view,
    only: ~w(phoenix_live_view.min.js)

  plug Plug.Static, at: "/", from: :example, only: ~w(app.css app.js favicon.svg)

  plug Plug.Parsers, parsers: [:urlencoded]
  plug Plug.Head
  plug Plug.Session, @session
  plug ExampleWeb.Router
end
