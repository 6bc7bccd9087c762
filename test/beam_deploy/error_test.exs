defmodule BeamDeploy.ErrorTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.Error

  test "a reason is said in a sentence" do
    for {reason, sentence} <- [
          {:upgrade_in_progress, "in progress"},
          {:release_not_found, "no such file"},
          {{:unreadable, :eacces}, "permission denied"},
          {{:extract_failed, :enospc}, "no space left"},
          {{:extract_failed, "crc"}, "crc"},
          {{:checksum_mismatch, "aa", "bb"}, "is bb, not aa"},
          {{:unsafe_archive, "../x", :parent_dir}, "../x"},
          {{:invalid_release, {:other_app, ["other"]}}, "other"},
          {{:boot_failed, %{output: "boom"}}, "boom"},
          {{:boot_timeout, %{output: ""}}, "in time"},
          {{:health_check_failed, %{answer: :nope, output: ""}}, ":nope"},
          {{:something, :new}, "{:something, :new}"}
        ] do
      assert Exception.message(%Error{reason: reason}) =~ sentence
    end
  end
end
