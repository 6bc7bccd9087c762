defmodule BeamDeploy.HotUpgrade.SysConfigTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.HotUpgrade.SysConfig

  defp comparable(text, version \\ "1"), do: SysConfig.comparable("sys.config", text, version)

  test "the order in which a VM prints maps makes no difference" do
    one = "%% c\n[{a,[{m,\#{x => [1,{2,3}],'y,}' => <<1,2>>,z => \#{p => 1,q => \"a,b\"}}}]}].\n"
    two = "%% c\n[{a,[{m,\#{z => \#{q => \"a,b\",p => 1},x => [1,{2,3}],'y,}' => <<1,2>>}}]}].\n"
    assert comparable(one) == comparable(two)
    refute comparable(one) == comparable(String.replace(two, "p => 1", "p => 2"))
  end

  test "the order of lists and tuples does" do
    refute comparable("[{a,[1,2]}].") == comparable("[{a,[2,1]}].")
    refute comparable("[{a,{1,2}}].") == comparable("[{a,{2,1}}].")
  end

  test "the version in paths makes none, as text or as bytes" do
    assert comparable(~s([{a,"/releases/0.1.0/x"}].), "0.1.0") ==
             comparable(~s([{a,"/releases/0.2.0/x"}].), "0.2.0")

    bytes = fn text -> text |> String.to_charlist() |> Enum.join(",") end

    assert comparable("<<#{bytes.("/releases/0.1.0/x")}>>", "0.1.0") ==
             comparable("<<#{bytes.("/releases/0.2.0/x")}>>", "0.2.0")
  end

  test "what is no Erlang term is left as it is" do
    for text <- ["", "}", "]]}", "\#{", "\#{a => ", "'", "a'b\"c"],
        do: assert(comparable(text) == text)

    assert SysConfig.comparable("env.sh", "echo \#{b,a}", "1") == "echo \#{b,a}"
  end
end
