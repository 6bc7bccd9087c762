defmodule BeamDeploy.HotUpgrade.PlanTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.HotUpgrade.Plan
  alias BeamDeploy.Test.{Beams, Tarball}

  @moduletag :tmp_dir

  # A release as a map: modules by name to a number that is in their code, files under priv, further applications.
  defp write(dir, name, release) do
    version = release[:version] || "0.1.0"
    extra = release[:applications] || []

    modules =
      for {module, value} <- release[:modules] || %{} do
        contents = if is_binary(value), do: value, else: Beams.compile(module, value)
        {"lib/my_app-1.0.0/ebin/#{module}.beam", contents}
      end

    protocols =
      for {module, value} <- release[:protocols] || %{} do
        {"releases/#{version}/consolidated/#{module}.beam", Beams.compile(module, value)}
      end

    files =
      for {path, contents} <- release[:files] || %{},
          do: {"lib/my_app-1.0.0/priv/#{path}", contents}

    config =
      for {path, text} <- release[:config] || %{}, do: {"releases/#{version}/#{path}", text}

    Tarball.write!(
      Path.join(dir, "#{name}.tar.gz"),
      Tarball.release(
        [
          version: version,
          applications: ["my_app", "beam_deploy", "kernel", "stdlib"] ++ extra,
          files: modules ++ protocols ++ files ++ config
        ] ++ Keyword.take(Keyword.new(release), [:erts])
      )
    )
  end

  defp plan(dir, old, new, options \\ []) do
    old = write(dir, "old", old)
    new = write(dir, "new", new)
    {:ok, plan, %{changes: changes}} = Plan.build(new, [against: old] ++ options)
    {plan, changes}
  end

  test "a tarball compared with itself changes nothing", %{tmp_dir: dir} do
    release = %{
      modules: %{bd_a: 1, bd_b: 1},
      protocols: %{bd_p: 1},
      files: %{"static/app.js" => "x"}
    }

    {plan, []} = plan(dir, release, release)
    assert Plan.empty?(plan)
    assert {plan.recommendation, plan.unchanged} == {:hot, 3}
  end

  test "random edits come out as the plan", %{tmp_dir: dir} do
    seed = {11, 22, 33}
    :rand.seed(:exsss, seed)
    names = for n <- 1..12, do: :"bd_random_#{n}"
    paths = for n <- 1..6, do: "static/#{n}.css"

    for round <- 1..25 do
      pick = fn keys ->
        for key <- keys, :rand.uniform(3) > 1, into: %{}, do: {key, :rand.uniform(2)}
      end

      texts = fn picked -> Map.new(picked, fn {path, n} -> {path, "text #{n}"} end) end
      old = %{modules: pick.(names), files: texts.(pick.(paths))}
      new = %{modules: pick.(names), files: texts.(pick.(paths)), version: "0.#{round}.0"}
      {plan, changes} = plan(dir, old, new)

      assert plan.changed == differing(old.modules, new.modules), inspect(seed)
      assert plan.new == added(old.modules, new.modules)
      assert plan.removed == added(new.modules, old.modules)
      assert plan.unchanged == Enum.count(new.modules, fn {name, n} -> old.modules[name] == n end)
      assert Enum.sort(Enum.map(changes, & &1.name)) == Enum.sort(plan.changed ++ plan.new)

      in_app = &Enum.map(&1, fn path -> "my_app/priv/" <> path end)
      assert plan.files.changed == in_app.(differing(old.files, new.files))
      assert plan.files.added == in_app.(added(old.files, new.files))
      assert plan.files.removed == in_app.(added(new.files, old.files))

      for change <- changes do
        assert change.bytes ==
                 Beams.compile(
                   String.to_existing_atom(change.name),
                   new.modules[String.to_existing_atom(change.name)]
                 )
      end
    end
  end

  defp differing(old, new) do
    for({key, value} <- new, is_map_key(old, key), old[key] != value, do: "#{key}") |> Enum.sort()
  end

  defp added(old, new),
    do: for({key, _} <- new, not is_map_key(old, key), do: "#{key}") |> Enum.sort()

  test "the consolidated protocol counts, not the one in lib", %{tmp_dir: dir} do
    old = %{modules: %{bd_proto: 1}, protocols: %{bd_proto: 5}}
    assert {%{changed: [], protocols: []}, []} = plan(dir, old, %{old | modules: %{bd_proto: 2}})

    assert {%{changed: ["bd_proto"], protocols: ["bd_proto"]}, [change]} =
             plan(dir, old, %{old | protocols: %{bd_proto: 6}})

    assert change.bytes == Beams.compile(:bd_proto, 6)
  end

  describe "the verdict" do
    defp reasons(dir, old, new, options \\ []) do
      {plan, _changes} = plan(dir, old, new, options)
      {plan.recommendation, plan.reasons}
    end

    defp elixir(source), do: source |> Beams.elixir() |> Map.new()

    test "refuses another runtime system", %{tmp_dir: dir} do
      assert reasons(dir, %{erts: "13.1"}, %{erts: "14.0"}) ==
               {:cold, [{:erts_changed, "13.1", "14.0"}]}
    end

    test "refuses a changed list of applications", %{tmp_dir: dir} do
      assert reasons(dir, %{}, %{applications: ["added"]}) ==
               {:blue_green, [applications_added: ["added"]]}

      assert reasons(dir, %{applications: ["gone"]}, %{}) ==
               {:blue_green, [applications_removed: ["gone"]]}
    end

    test "refuses a changed supervisor unless its children are asked for", %{tmp_dir: dir} do
      source = fn children ->
        elixir("""
        defmodule BD.VerdictTop do
          use Supervisor
          def init(_), do: Supervisor.init(#{children}, strategy: :one_for_one)
        end
        """)
      end

      old = %{modules: source.("[]")}
      new = %{modules: source.("[BD.Child]")}

      assert reasons(dir, old, new) ==
               {:blue_green, [supervision_changed: ["Elixir.BD.VerdictTop"]]}

      assert reasons(dir, old, new, supervisors: true) == {:hot, []}
    end

    test "refuses changed native code and never loads it", %{tmp_dir: dir} do
      source =
        &elixir(
          "defmodule BD.VerdictNif do\n @on_load :load\n def load, do: :ok\n def n, do: #{&1}\nend"
        )

      {plan, changes} = plan(dir, %{modules: source.(1)}, %{modules: source.(2)})
      assert plan.reasons == [native_code_changed: ["Elixir.BD.VerdictNif"]]
      assert {plan.changed, plan.skipped, changes} == {[], ["Elixir.BD.VerdictNif"], []}

      assert reasons(dir, %{files: %{"n.so" => "1"}}, %{files: %{"n.so" => "2"}}) ==
               {:blue_green, [native_code_changed: ["my_app/priv/n.so"]]}
    end

    test "refuses a changed struct unless somebody converts it", %{tmp_dir: dir} do
      state = fn fields ->
        "defmodule BD.VerdictState do\n defstruct #{inspect(fields)}\nend\n"
      end

      server = fn callback ->
        """
        defmodule BD.VerdictServer do
          use GenServer
          def init(_), do: {:ok, %BD.VerdictState{}}
          #{callback}
        end
        """
      end

      own = "def code_change(_, state, _), do: {:ok, Map.put(state, :b, 1)}"
      old = %{modules: elixir(state.([:a, :gone]) <> server.(""))}
      changed = {:struct_changed, "Elixir.BD.VerdictState", %{added: ["b"], removed: ["gone"]}}

      assert {:blue_green, [^changed]} =
               reasons(dir, old, %{modules: elixir(state.([:a, :b]) <> server.(""))})

      assert {:hot, []} = reasons(dir, old, %{modules: elixir(state.([:a, :b]) <> server.(own))})
      # The same fields, other defaults.
      assert {:hot, []} =
               reasons(dir, old, %{modules: elixir(state.(a: 1, gone: 2) <> server.(""))})
    end

    test "refuses changed configuration, other than the release's own version in it", %{
      tmp_dir: dir
    } do
      config = fn version, text ->
        bytes = "/releases/#{version}/runtime.exs" |> :binary.bin_to_list() |> Enum.join(",")
        %{"sys.config" => "[{elixir,<<#{bytes}>>}].", "runtime.exs" => text, "vm.args" => "+S 1"}
      end

      old = %{config: config.("0.1.0", "a")}
      assert {:hot, []} = reasons(dir, old, %{config: config.("0.2.0", "a"), version: "0.2.0"})
      new = %{config: config.("0.2.0", "b"), version: "0.2.0"}
      assert {:blue_green, [config_changed: ["runtime.exs"]]} = reasons(dir, old, new)
      assert {:hot, []} = reasons(dir, old, new, config: true)

      new = put_in(old, [:config, "vm.args"], "+S 2")
      assert {:blue_green, [config_changed: ["vm.args"]]} = reasons(dir, old, new, config: true)
    end
  end

  describe "a plan for the running node" do
    test "compares with what is loaded", %{tmp_dir: dir} do
      {:module, :bd_running} =
        :code.load_binary(:bd_running, ~c"bd_running.beam", Beams.compile(:bd_running, 1))

      same = write(dir, "same", %{modules: %{bd_running: 1}})
      other = write(dir, "other", %{modules: %{bd_running: 2, bd_not_there: 1}})

      assert {:ok, %{changed: [], new: []}, %{changes: []}} = Plan.build(same)

      assert {:ok, %{changed: ["bd_running"], new: ["bd_not_there"]}, %{changes: [_, _]}} =
               Plan.build(other)
    after
      :code.purge(:bd_running)
      :code.delete(:bd_running)
    end

    # A release without its own runtime system names kernel and stdlib, and holds nothing of them.
    test "takes nothing for gone that was not to be in the tarball", %{tmp_dir: dir} do
      path = write(dir, "without_otp", %{modules: %{bd_not_there: 1}})
      assert {:ok, %{removed: []}, _new} = Plan.build(path)
    end

    test "makes no atoms of what the archive holds", %{tmp_dir: dir} do
      name = "bd_never_an_atom_#{System.unique_integer([:positive])}"
      beam = Beams.compile(:bd_atoms, 1)
      renamed = rename(beam, "bd_atoms", String.slice(name, -8, 8))
      path = write(dir, "atoms", %{modules: %{bd_atoms: renamed}})
      assert {:ok, plan, _new} = Plan.build(path)
      assert String.slice(name, -8, 8) in plan.new
      assert_raise ArgumentError, fn -> String.to_existing_atom(String.slice(name, -8, 8)) end
    end
  end

  # The name in the atom chunk, which has the same length.
  defp rename(beam, from, to), do: :binary.replace(beam, from, to, [:global])

  test "what is no release is refused", %{tmp_dir: dir} do
    assert {:error, :release_not_found} = Plan.build(Path.join(dir, "none.tar.gz"))
    path = Path.join(dir, "x.tar.gz")
    File.write!(path, "not gzip")
    assert {:error, {:extract_failed, _message}} = Plan.build(path)
    Tarball.write!(path, [Tarball.entry("a", "b")])
    assert {:error, {:invalid_release, :not_a_release}} = Plan.build(path)
    Tarball.write!(path, [Tarball.entry("lib/a-1/ebin/x.beam", "no beam") | Tarball.release()])
    assert {:error, {:extract_failed, message}} = Plan.build(path)
    assert message =~ "x.beam"
    Tarball.write!(path, [Tarball.entry("../x", "b") | Tarball.release()])
    assert {:error, {:unsafe_archive, "../x", :parent_dir}} = Plan.build(path)
  end
end
