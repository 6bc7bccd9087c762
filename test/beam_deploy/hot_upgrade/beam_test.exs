defmodule BeamDeploy.HotUpgrade.BeamTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.HotUpgrade.Beam
  alias BeamDeploy.Native
  alias BeamDeploy.Test.Beams

  test "the native digest is the VM's for every file of the platform" do
    for app <- [:stdlib, :kernel, :compiler, :elixir, :mix, :crypto],
        path <- Path.wildcard("#{:code.lib_dir(app)}/ebin/*.beam") do
      beam = File.read!(path)
      {:ok, {_module, expected}} = :beam_lib.md5(beam)
      assert {:ok, {^expected, _bare}} = Beam.md5s(beam), path
    end
  end

  test "it is that of the loaded module" do
    for module <- [Enum, GenServer, :lists, :gen_server, BeamDeploy.HotUpgrade.Plan] do
      md5 = module.module_info(:md5)
      assert {:ok, {^md5, _bare}} = Beam.md5s(File.read!(:code.which(module)))
    end

    assert Beam.native?()
  end

  test "compression does not change it, and the second digest does not see Meta" do
    plain = Beams.compile(:bd_compressed, 1)
    {:ok, {bare, bare}} = Beam.md5s(plain)

    assert {:ok, {^bare, ^bare}} =
             Beam.md5s(Beams.compile(:bd_compressed, 1, compile: [:compressed]))

    {:ok, :bd_compressed, chunks} = :beam_lib.all_chunks(plain)

    {:ok, with_meta} =
      :beam_lib.build_module(chunks ++ [{~c"Meta", :erlang.term_to_binary([:x])}])

    {:ok, {_module, whole}} = :beam_lib.md5(with_meta)
    assert whole != bare
    assert {:ok, {^whole, ^bare}} = Beam.md5s(with_meta)
  end

  test "other bytes are refused" do
    assert {:error, _reason} = Beam.md5s("")
    assert {:error, _reason} = Beam.md5s("FOR1 and more")
    assert {:error, _reason} = Native.beam_facts(:crypto.strong_rand_bytes(500))
  end

  describe "facts" do
    setup do
      beams =
        Beams.elixir("""
        defmodule BD.Default do
          use GenServer
          def init(x), do: {:ok, x}
        end
        defmodule BD.Own do
          use GenServer
          defstruct [:b, :a, c: &String.upcase/1, d: %{deep: [1, {2, "three"}]}]
          def init(x), do: {:ok, x}
          def code_change(_old, state, _extra), do: {:ok, {:new, state}}
        end
        defmodule BD.Top do
          use Supervisor
          def init(x), do: Supervisor.init(x, strategy: :one_for_one)
        end
        defmodule BD.Native do
          @on_load :load
          def load, do: :ok
          def mention, do: BD.Other.Struct
        end
        """)

      %{
        facts:
          Map.new(beams, fn {module, beam} -> {module, elem(Native.beam_facts(beam), 1)} end),
        beams: beams
      }
    end

    test "tell the code_change that `use GenServer` brings from one's own", %{facts: facts} do
      assert facts[BD.Default].code_change == :identity
      assert facts[BD.Own].code_change == :own
      assert facts[BD.Native].code_change == :none
    end

    test "name the fields of a struct", %{facts: facts} do
      assert facts[BD.Own].struct_fields == ["a", "b", "c", "d"]
      assert facts[BD.Default].struct_fields == nil
    end

    test "name behaviours and on_load", %{facts: facts} do
      assert facts[BD.Top].behaviours == ["Elixir.Supervisor"]
      assert facts[BD.Native].on_load
      refute facts[BD.Own].on_load
    end

    test "what the code can name is among its names", %{beams: beams} do
      {:ok, names} = Beam.names(beams[BD.Native])
      assert "Elixir.BD.Other.Struct" in names
    end
  end
end
