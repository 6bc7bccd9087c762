defmodule BeamDeploy.Error do
  @moduledoc """
  What the functions with a `!` raise.

  The field `:reason` holds what the function without the `!` returns as `{:error, reason}`; `message/1` says it
  in a sentence.
  """

  @enforce_keys [:reason]
  defexception [:reason]

  @type t :: %__MODULE__{reason: term()}

  @impl true
  def message(%__MODULE__{reason: reason}), do: describe(reason)

  defp describe(:not_running),
    do: "there is no BeamDeploy parent here: is the release running, and BEAM_DEPLOY set for it?"

  defp describe(:upgrade_in_progress), do: "another upgrade is in progress"
  defp describe(:no_active_peer), do: "no peer serves at the moment; one is being booted"
  defp describe(:release_not_found), do: "there is no such file"
  defp describe({:unreadable, posix}), do: "the tarball cannot be read: #{posix(posix)}"

  defp describe({:extract_failed, posix}) when is_atom(posix),
    do: "the tarball cannot be unpacked: #{posix(posix)}"

  defp describe({:extract_failed, message}), do: "the tarball cannot be unpacked: #{message}"

  defp describe({:invalid_release, why}),
    do: "this is not a release that can be deployed here: #{invalid(why)}"

  defp describe({:unsafe_archive, entry, why}),
    do: "the tarball is refused for its entry #{inspect(entry)}: #{why}"

  defp describe({:checksum_mismatch, expected, actual}),
    do: "the tarball is not the expected one: its SHA-256 is #{actual}, not #{expected}"

  defp describe({:incompatible_release, details}),
    do: "the release cannot run here: #{inspect(details)}"

  defp describe({:boot_failed, details}), do: "the new release does not boot" <> peer(details)

  defp describe({:boot_timeout, details}),
    do: "the new release did not boot in time" <> peer(details)

  defp describe({:health_check_failed, details}),
    do:
      "the new release is not healthy: its health check answered #{inspect(details[:answer])}" <>
        peer(details)

  defp describe({:crashed, reason}),
    do: "the swap itself failed: #{Exception.format_exit(reason)}"

  defp describe({:unknown_release, version}),
    do: "there is no release #{inspect(version)} in the store"

  defp describe({:listen_failed, what, reason}),
    do: "#{inspect(what)} cannot listen: #{inspect(reason)}"

  defp describe(reason), do: inspect(reason)

  defp invalid(:not_a_release),
    do: "it holds no releases/start_erl.data, which `mix release` writes"

  defp invalid(:without_beam_deploy), do: "beam_deploy is not among its applications"

  defp invalid({:other_app, apps}),
    do: "it belongs to another application; it holds #{Enum.join(apps, ", ")}"

  defp invalid(why), do: inspect(why)

  defp posix(posix), do: posix |> :file.format_error() |> List.to_string()

  defp peer(details) do
    reason = if reason = details[:reason], do: " (#{inspect(reason)})", else: ""
    output = details[:output]
    last = if output in [nil, ""], do: "", else: "; the last it printed:\n" <> output
    reason <> last
  end
end
