import Config

port = String.to_integer(System.get_env("PORT", "4000"))

config :example, port: port

# Whoever opens this page can deploy, so it is served on loopback only.
config :example, ExampleWeb.Endpoint,
  server: true,
  http: [ip: {127, 0, 0, 1}, port: port],
  url: [host: "localhost", port: port],
  # All versions need the same one: a session begun in one goes on in the next.
  secret_key_base:
    System.get_env("SECRET_KEY_BASE") || String.duplicate("only-for-development", 4)
