defmodule BeamDeploy.StaticTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.PeerNode.Digested
  alias BeamDeploy.Static

  @moduletag :tmp_dir

  @digest String.duplicate("0123abcd", 4)

  # A release that has these files, and a manifest that lists those names.
  defp release(tmp_dir, name, files, listed \\ nil) do
    root = Path.join(tmp_dir, name)
    static = Path.join(root, "lib/my_app-#{name}/priv/static")

    for file <- files do
      path = Path.join(static, file)
      File.mkdir_p!(Path.dirname(path))
      File.write!(path, "#{file} of #{name}")
    end

    digests = Enum.map_join(listed || files, ",", &~s("#{&1}": {"logical_path": "a/b.js"}))
    File.write!(Path.join(static, "cache_manifest.json"), ~s({"digests": {#{digests}}}))
    root
  end

  defp index(roots), do: Digested.index(roots, {:my_app, "priv/static"})

  describe "what is found" do
    test "names with a digest that a manifest lists, the first release's where several have one",
         %{
           tmp_dir: tmp_dir
         } do
      one = release(tmp_dir, "0.1.0", ["app-#{@digest}.js", "img/a b-#{@digest}.png", "app.js"])
      two = release(tmp_dir, "0.2.0", ["app-#{@digest}.js", "LICENSE-#{@digest}"])

      assert index([one, two]) == %{
               "app-#{@digest}.js" =>
                 Path.join(one, "lib/my_app-0.1.0/priv/static/app-#{@digest}.js"),
               "img/a b-#{@digest}.png" =>
                 Path.join(one, "lib/my_app-0.1.0/priv/static/img/a b-#{@digest}.png"),
               "LICENSE-#{@digest}" =>
                 Path.join(two, "lib/my_app-0.2.0/priv/static/LICENSE-#{@digest}")
             }
    end

    test "nothing that leads out of the directory, whatever the manifest says", %{
      tmp_dir: tmp_dir
    } do
      names =
        for prefix <- ["../", "/etc/", "a/../../", "./", "a//", ~S(a\\..\\), ~S(\u002e\u002e/)],
            do: "#{prefix}x-#{@digest}.js"

      root = release(tmp_dir, "0.1.0", ["ok-#{@digest}.js"], ["ok-#{@digest}.js" | names])
      assert [only] = Map.keys(index([root]))
      assert only == "ok-#{@digest}.js"
    end

    test "nothing where there is no manifest, no such application, or no release", %{
      tmp_dir: tmp_dir
    } do
      root = release(tmp_dir, "0.1.0", ["app-#{@digest}.js"])
      assert Digested.index([root], {:my, "priv/static"}) == %{}
      assert Digested.index([root], {:my_app, "priv/other"}) == %{}
      assert index([Path.join(tmp_dir, "gone")]) == %{}

      File.write!(
        Path.join(root, "lib/my_app-0.1.0/priv/static/cache_manifest.json"),
        <<255, ?">>
      )

      assert index([root]) == %{}
    end
  end

  test "a name has a digest before its extension, and no tricks" do
    for name <- ["app-#{@digest}.js", "a/b-#{@digest}.tar.gz", "b-#{@digest}"],
        do: assert(Digested.name?(name))

    for name <- [
          "app.js",
          "app-#{String.upcase(@digest)}.js",
          "app-0#{@digest}.js.map/x",
          "../b-#{@digest}",
          "/b-#{@digest}",
          "b-#{@digest}.a\0b",
          "b-#{@digest}.js\n/x",
          <<255>> <> "-#{@digest}.js"
        ],
        do: refute(Digested.name?(name), inspect(name))
  end

  test "elsewhere than in a peer every request goes on" do
    conn = %Plug.Conn{path_info: ["app-#{@digest}.js"]}
    assert Static.call(conn, Static.init(from: :my_app)) == conn
  end

  test "options are checked" do
    assert_raise ArgumentError, ~r/:from as an application/, fn -> Static.init(at: "/") end
    assert_raise ArgumentError, ~r/\[:form\]/, fn -> Static.init(form: :my_app) end
    assert %{from: {:my_app, "priv/web"}} = Static.init(from: {:my_app, "priv/web"})
  end
end
