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

  @doc "The same without what a peer printed, for where that can be read anyway."
  @spec sentence(term()) :: String.t()
  def sentence({kind, %{output: _printed} = details}),
    do: describe({kind, Map.delete(details, :output)})

  def sentence(reason), do: describe(reason)

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

  defp describe(:nothing_changed), do: "the tarball holds what is running already"

  defp describe({:not_hot, recommendation, reasons}),
    do:
      "this cannot be taken over by a running node, use #{way(recommendation)}: " <>
        Enum.map_join(reasons, "; ", &not_hot/1)

  defp describe({:old_code_in_use, pids}),
    do:
      "#{count(pids, "process")} still run code from before an earlier upgrade: #{inspect(pids)}"

  defp describe({:old_code_unavailable, modules}),
    do:
      "the files of loaded modules are gone or changed, so that nothing could be put back: #{inspect(modules)}"

  defp describe({:suspend_failed, pids}),
    do: "#{count(pids, "process")} could not be suspended in time: #{inspect(pids)}"

  defp describe({:load_failed, modules}), do: "modules cannot be loaded: #{inspect(modules)}"

  defp describe({:code_change_failed, %{processes: processes, killed: killed}}),
    do:
      "#{count(processes, "process")} could not convert their state, and everything was put back: " <>
        Enum.map_join(processes, ", ", &"#{inspect(&1.pid)} #{inspect(&1.module)}") <>
        if(killed == [], do: "", else: "; ended for it: #{inspect(killed)}")

  defp describe({:config_failed, reason}),
    do: "the new configuration cannot be evaluated: #{inspect(reason)}"

  defp describe(:no_previous_release), do: "no release served before this one"

  defp describe({:damaged_release, version}),
    do: "release #{inspect(version)} is no longer whole in the store"

  defp describe({:already_current, version}), do: "release #{inspect(version)} serves already"

  defp describe({:unsigned, signature}),
    do: "the tarball is not signed: there is no #{signature}"

  defp describe({:bad_signature, signature}),
    do: "the signature #{signature} is not one of this tarball by the key that is trusted here"

  defp describe({:keeps_ending, times, seconds}),
    do: "it ended by itself #{times} times within #{seconds} s of taking over"

  defp describe(reason), do: inspect(reason)

  defp way(:blue_green), do: "a blue-green swap"
  defp way(:cold), do: "a new start"

  @doc false
  @spec not_hot(term()) :: String.t()
  def not_hot({:erts_changed, old, new}), do: "another runtime system (#{old}, now #{new})"
  def not_hot({:applications_added, apps}), do: "new applications: #{Enum.join(apps, ", ")}"
  def not_hot({:applications_removed, apps}), do: "applications gone: #{Enum.join(apps, ", ")}"

  def not_hot({:struct_changed, module, _fields}),
    do: "the fields of %#{name(module)}{} changed, and no code_change/3 converts it"

  def not_hot({what, names}),
    do:
      "#{what |> to_string() |> String.replace("_", " ")}: #{Enum.map_join(names, ", ", &name/1)}"

  defp name("Elixir." <> name), do: name
  defp name(name), do: name

  defp count([_one], noun), do: "1 #{noun}"
  defp count(list, noun), do: "#{length(list)} #{noun}es"

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
