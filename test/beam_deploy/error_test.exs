defmodule BeamDeploy.ErrorTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.Error

  # A reason, and something that its sentence says.
  defp examples do
    [
      {:not_running, "no BeamDeploy parent"},
      {:upgrade_in_progress, "in progress"},
      {:no_active_peer, "no peer serves"},
      {{:peer_boot_failed, {:boot_failed, %{output: "boom"}}}, "does not come up"},
      {{:peer_boot_failed, {:peer_keeps_ending, "0.1.0"}}, "release 0.1.0 keeps ending"},
      {:release_not_found, "no such file"},
      {{:unreadable, :eacces}, "permission denied"},
      {{:extract_failed, :enospc}, "no space left"},
      {{:extract_failed, "crc"}, "crc"},
      {{:extract_failed, {:errno, 116}}, "error 116"},
      {{:checksum_mismatch, "aa", "bb"}, "is bb, not aa"},
      {{:unsafe_archive, "../x", :parent_dir}, "../x"},
      {{:unsigned, "/tmp/x.sig"}, "no /tmp/x.sig"},
      {{:bad_signature, "/tmp/x.sig"}, "/tmp/x.sig is not one of this tarball"},
      {{:invalid_release, {:other_app, ["other"]}}, "other"},
      {{:invalid_release, :without_beam_deploy}, "not among its applications"},
      {{:incompatible_release, %{libc: {:musl, :glibc}}}, "musl"},
      {{:boot_failed, %{output: "boom"}}, "boom"},
      {{:boot_timeout, %{output: ""}}, "in time"},
      {{:health_check_failed, %{answer: :nope, output: ""}}, ":nope"},
      {{:listen_failed, MyAppWeb.Endpoint, :eaddrinuse}, "MyAppWeb.Endpoint cannot listen"},
      {{:cutover_failed, :einval}, ":einval"},
      {{:keeps_ending, 2, 60}, "2 times within 60 s"},
      {{:crashed, :killed}, "killed"},
      {:no_previous_release, "no release served before"},
      {{:unknown_release, "9.9.9"}, "9.9.9"},
      {{:already_current, "0.1.0"}, "serves already"},
      {{:damaged_release, "0.1.0"}, "no longer whole"},
      {:nothing_changed, "running already"},
      {{:not_hot, :blue_green, [applications_added: ["new"]]},
       "use a blue-green swap: new applications: new"},
      {{:not_hot, :blue_green, [{:struct_changed, "Elixir.My.State", %{added: [], removed: []}}]},
       "%My.State{}"},
      {{:not_hot, :cold, [{:erts_changed, "13", "14"}, {:config_changed, ["vm.args"]}]},
       "a new start: another runtime system (13, now 14); config changed: vm.args"},
      {{:old_code_in_use, [self()]}, "1 process still"},
      {{:old_code_unavailable, [A]}, "[A]"},
      {{:suspend_failed, [self(), self()]}, "2 processes could not be suspended"},
      {{:load_failed, [{A, :badfile}]}, "[{A, :badfile}]"},
      {{:code_path, :bad_directory}, "bad_directory"},
      {{:code_change_failed, %{processes: [%{pid: self(), module: A, reason: :no}], killed: []}},
       "everything was put back"},
      {{:config_failed, :timeout}, "configuration"},
      {{:not_recorded, :erofs}, "read-only file system"},
      {{:insecure_store, "/s", {:mode, 0o750}}, "750, not 700"},
      {{:insecure_store, "/s", {:owner, 1, 0}}, "user 1, not 0"},
      {{:insecure_store, "/s", {:not_a_directory, :symlink}}, "a symlink"},
      {{:insecure_store, "/s/t", {:above, "/s", {:mode, 0o777}}}, "/s, its mode is 777"},
      {{:insecure_store, "/s/t", {:above, "/s", {:owner, 1}}}, "/s belongs to user 1"},
      {{:insecure_store, "/s/t", {:above, "/s", {:unreadable, :eacces}}}, "permission denied"},
      {{:store_in_use, "/s"}, "another running parent"},
      {{:corrupt_store, "/s/state", :checksum}, "/s/state"},
      {{:store_failed, "/s/state", :enospc}, "no space left"}
    ]
  end

  test "a reason is said in a sentence" do
    for {reason, sentence} <- examples() do
      message = Exception.message(%Error{reason: reason})
      assert message =~ sentence
      assert message != inspect(reason)
    end

    assert Exception.message(%Error{reason: {:something, :new}}) == "{:something, :new}"
  end

  test "every reason has its sentence and its place in the troubleshooting guide" do
    guide = File.read!("guides/troubleshooting.md")
    said = for {reason, _sentence} <- examples(), do: tag(reason)

    for name <- reasons(Error) do
      assert name in said
      assert guide =~ ~r/^### .*`\{?:#{name}\b/m, "the guide has no heading for #{name}"
    end

    assert Enum.uniq(said) -- reasons(Error) == []
  end

  test "the reasons of each part are among them" do
    for part <- [BeamDeploy.HotUpgrade, BeamDeploy.Release.Archive, BeamDeploy.Release.Store],
        do: assert(reasons(part) -- reasons(Error) == [])
  end

  # What the type `reason` of a module names itself.
  defp reasons(module) do
    {:ok, types} = Code.Typespec.fetch_types(module)

    assert {:type, _, :union, members} =
             for({_kind, {:reason, type, []}} <- types, do: type) |> hd()

    for member <- members, name <- named(member), uniq: true, do: name
  end

  defp named({:atom, _line, name}), do: [name]
  defp named({:type, _line, :tuple, [{:atom, _, name} | _rest]}), do: [name]
  defp named({:remote_type, _line, _type}), do: []

  defp tag(reason) when is_tuple(reason), do: elem(reason, 0)
  defp tag(reason), do: reason
end
