defmodule BeamDeploy.HotUpgrade.ErrorTest do
  use ExUnit.Case, async: true

  test "every error of a hot upgrade has its sentence" do
    for {reason, sentence} <- [
          {:nothing_changed, "running already"},
          {{:not_hot, :blue_green, [applications_added: ["new"]]},
           "use a blue-green swap: new applications: new"},
          {{:not_hot, :blue_green,
            [{:struct_changed, "Elixir.My.State", %{added: [], removed: []}}]}, "%My.State{}"},
          {{:not_hot, :cold, [{:erts_changed, "13", "14"}, {:config_changed, ["vm.args"]}]},
           "a new start: another runtime system (13, now 14); config changed: vm.args"},
          {{:old_code_in_use, [self()]}, "1 process still"},
          {{:suspend_failed, [self(), self()]}, "2 processes could not be suspended"},
          {{:code_change_failed,
            %{processes: [%{pid: self(), module: A, reason: :no}], killed: []}},
           "everything was put back"},
          {{:config_failed, :timeout}, "configuration"},
          {{:load_failed, []}, "cannot be loaded"},
          {{:old_code_unavailable, [A]}, "[A]"}
        ] do
      assert Exception.message(%BeamDeploy.Error{reason: reason}) =~ sentence
    end
  end
end
