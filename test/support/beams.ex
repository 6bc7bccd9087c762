defmodule BeamDeploy.Test.Beams do
  @moduledoc false
  # Modules compiled in memory, never loaded, in the version a test wants.

  @doc "The object code of an Erlang module that exports `value/0` answering `value`."
  def compile(module, value, options \\ []) do
    forms =
      [{:attribute, 1, :module, module}, {:attribute, 1, :export, [{:value, 0}]}] ++
        Keyword.get(options, :forms, []) ++
        [{:function, 1, :value, 0, [{:clause, 1, [], [], [:erl_parse.abstract(value)]}]}]

    {:ok, ^module, beam} =
      :compile.forms(forms, [:deterministic | Keyword.get(options, :compile, [])])

    beam
  end

  @doc "The object code of the modules in an Elixir source, by name. They are gone from the VM again."
  def elixir(source) do
    modules = Code.compile_string(source)

    for {module, beam} <- modules, into: %{} do
      :code.purge(module)
      :code.delete(module)
      :code.purge(module)
      {module, beam}
    end
  end
end
