import Config

config :phoenix, :json_library, Jason

config :example, ExampleWeb.Endpoint,
  adapter: Bandit.PhoenixAdapter,
  render_errors: [formats: [html: ExampleWeb.ErrorHTML], layout: false],
  live_view: [signing_salt: "pS7vK2nQ"],
  # The page may be opened as localhost, as 127.0.0.1, or through a tunnel.
  check_origin: :conn

config :logger, level: :info
