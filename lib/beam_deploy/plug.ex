defmodule BeamDeploy.Plug do
  @moduledoc """
  Answers with `connection: close` while the node drains, so that clients with keep-alive connections move to the new
  version with their next request.

  Bandit and Cowboy do so without it, where BeamDeploy configures them (Phoenix endpoints and
  `BeamDeploy.server_options/2`). Put it into the endpoint or router of any other server that keeps to
  the header, or to have Bandit say so on requests that were in progress when the drain began:

      plug BeamDeploy.Plug

  It has no options and needs no dependency but that on `:plug`, which whoever uses it has.
  """

  @compile {:no_warn_undefined, Plug.Conn}

  @doc false
  @spec init(term()) :: term()
  def init(options), do: options

  @doc false
  @spec call(struct(), term()) :: struct()
  def call(conn, _options), do: Plug.Conn.register_before_send(conn, &__MODULE__.answer/1)

  @doc false
  @spec answer(struct()) :: struct()
  def answer(conn) do
    if BeamDeploy.draining?() and Plug.Conn.get_http_protocol(conn) in [:"HTTP/1", :"HTTP/1.1"],
      do: Plug.Conn.put_resp_header(conn, "connection", "close"),
      else: conn
  end
end
