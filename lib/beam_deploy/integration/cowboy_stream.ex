defmodule BeamDeploy.Integration.CowboyStream do
  @moduledoc false
  # Responsible for: `connection: close` on what Cowboy answers over HTTP/1.1 while the node drains. A stream handler
  # (see :cowboy_stream), the first of its listener, so that it sees what all others make of a response.
  # Not for: closing connections; Cowboy does, after such an answer.

  alias BeamDeploy.PeerNode.Drain

  @compile {:no_warn_undefined, :cowboy_stream}

  @doc false
  def init(stream, request, options) do
    {commands, next} = :cowboy_stream.init(stream, request, options)
    {answer(commands, request.version), {request.version, next}}
  end

  @doc false
  def data(stream, final, data, {version, next}) do
    {commands, next} = :cowboy_stream.data(stream, final, data, next)
    {answer(commands, version), {version, next}}
  end

  @doc false
  def info(stream, message, {version, next}) do
    {commands, next} = :cowboy_stream.info(stream, message, next)
    {answer(commands, version), {version, next}}
  end

  @doc false
  def terminate(stream, reason, {_version, next}),
    do: :cowboy_stream.terminate(stream, reason, next)

  @doc false
  def early_error(stream, reason, request, response, options),
    do: :cowboy_stream.early_error(stream, reason, request, response, options)

  # HTTP/2 has no such header.
  defp answer(commands, :"HTTP/2"), do: commands

  defp answer(commands, _http_1) do
    if commands != [] and Drain.draining?(), do: Enum.map(commands, &close/1), else: commands
  end

  defp close({:response, status, headers, body}),
    do: {:response, status, close_header(headers), body}

  defp close({:headers, status, headers}), do: {:headers, status, close_header(headers)}
  defp close(command), do: command

  defp close_header(headers), do: Map.put(headers, "connection", "close")
end
