defmodule BeamDeploy.Error do
  @moduledoc """
  What the functions with a `!` raise.

  The field `:reason` holds what the function without the `!` returns as `{:error, reason}`; `message/1` says it
  in a sentence.
  """

  @enforce_keys [:reason]
  defexception [:reason]

  @type t :: %__MODULE__{reason: reason()}

  @typedoc """
  Why a deploy came to nothing, or the parent does not start. [Troubleshooting](troubleshooting.md) says for each what to
  do.
  """
  @type reason ::
          :not_running
          | :upgrade_in_progress
          | :no_active_peer
          | {:peer_boot_failed, reason :: term()}
          | :release_not_found
          | {:unreadable, File.posix()}
          | {:extract_failed, String.t() | File.posix()}
          | {:checksum_mismatch, expected :: String.t(), actual :: String.t()}
          | {:unsafe_archive, entry :: binary(), why :: atom()}
          | {:unsigned, Path.t()}
          | {:bad_signature, Path.t()}
          | {:invalid_release, why :: term()}
          | {:incompatible_release, details :: map()}
          | {:boot_failed, details :: map()}
          | {:boot_timeout, details :: map()}
          | {:health_check_failed, details :: map()}
          | {:listen_failed, what :: term(), reason :: term()}
          | {:cutover_failed, reason :: term()}
          | {:keeps_ending, times :: pos_integer(), seconds :: pos_integer()}
          | {:crashed, reason :: term()}
          | :no_previous_release
          | {:unknown_release, String.t()}
          | {:already_current, String.t()}
          | {:damaged_release, String.t()}
          | :nothing_changed
          | {:not_hot, :blue_green | :cold, reasons :: [tuple()]}
          | {:old_code_in_use, [pid()]}
          | {:old_code_unavailable, [module()]}
          | {:suspend_failed, [pid()]}
          | {:load_failed, [{module(), reason :: term()}]}
          | {:code_path, reason :: term()}
          | {:code_change_failed, details :: map()}
          | {:config_failed, reason :: term()}
          | {:not_recorded, File.posix()}
          | {:insecure_store, Path.t(), why :: term()}
          | {:store_in_use, Path.t()}
          | {:corrupt_store, Path.t(), why :: term()}
          | {:store_failed, Path.t(), File.posix()}

  @impl true
  def message(%__MODULE__{reason: reason}), do: describe(reason)

  @doc "A reason in a sentence: what `message/1` says, without the last lines that a peer printed."
  @spec sentence(term()) :: String.t()
  def sentence({kind, %{output: _printed} = details}),
    do: describe({kind, Map.delete(details, :output)})

  def sentence(reason), do: describe(reason)

  defp describe(:not_running),
    do: "there is no BeamDeploy parent here: is the release running, and BEAM_DEPLOY set for it?"

  defp describe(:upgrade_in_progress), do: "another upgrade is in progress"

  defp describe(:no_active_peer),
    do: "no peer serves: the one that was asked has ended, or the next is still being booted"

  defp describe({:peer_boot_failed, reason}),
    do:
      "no peer serves, the one that was being booted does not come up, and the parent ends: " <>
        sentence(reason)

  defp describe({:peer_keeps_ending, version}), do: "the peer of release #{version} keeps ending"

  defp describe(:release_not_found), do: "there is no such file"
  defp describe({:unreadable, posix}), do: "the tarball cannot be read: #{posix(posix)}"

  defp describe({:extract_failed, message}) when is_binary(message),
    do: "the tarball cannot be unpacked: #{message}"

  defp describe({:extract_failed, posix}),
    do: "the tarball cannot be unpacked: #{posix(posix)}"

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

  defp describe({:cutover_failed, reason}),
    do: "new connections cannot be sent to the new release: #{inspect(reason)}"

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
    do:
      "#{count(pids, "process")} could not be suspended before the new code was there: #{inspect(pids)}"

  defp describe({:load_failed, modules}), do: "modules cannot be loaded: #{inspect(modules)}"

  defp describe({:code_path, reason}),
    do: "the code path of the new release cannot be set: #{inspect(reason)}"

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

  defp describe({:not_recorded, posix}),
    do: "the upgraded release cannot be made the one that starts next: #{posix(posix)}"

  defp describe({:insecure_store, path, why}),
    do: "the release store #{path} is refused: #{insecure(why)}"

  defp describe({:store_in_use, path}),
    do: "the release store #{path} belongs to another running parent"

  defp describe({:corrupt_store, path, why}),
    do: "#{path} of the release store is damaged: #{inspect(why)}"

  defp describe({:store_failed, path, posix}),
    do: "#{path} of the release store cannot be written or read: #{posix(posix)}"

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

  defp insecure({:not_a_directory, type}), do: "it is no directory but a #{type}"
  defp insecure({:owner, owner, user}), do: "it belongs to user #{owner}, not #{user}"
  defp insecure({:mode, mode}), do: "its mode is #{octal(mode)}, not 700"
  defp insecure({:above, above, {:owner, owner}}), do: "#{above} belongs to user #{owner}"

  defp insecure({:above, above, {:mode, mode}}),
    do: "everybody may write to #{above}, its mode is #{octal(mode)}"

  defp insecure({:above, above, {:unreadable, posix}}),
    do: "#{above} cannot be looked at: #{posix(posix)}"

  defp octal(mode), do: Integer.to_string(mode, 8)

  # One that has no name among those of Erlang.
  defp posix({:errno, number}), do: "error #{number} of the operating system"
  defp posix(posix), do: posix |> :file.format_error() |> List.to_string()

  defp peer(details) do
    reason = if reason = details[:reason], do: " (#{inspect(reason)})", else: ""
    output = details[:output]
    last = if output in [nil, ""], do: "", else: "; the last it printed:\n" <> output
    reason <> last
  end
end
