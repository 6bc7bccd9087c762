defmodule BeamDeploy.Integration.StaticTest do
  # Digested files of one release asked for at another.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.{Instance, LogFile}
  alias BeamDeploy.Test.{Http, SampleRelease, Wait}

  @moduletag :tmp_dir
  @moduletag :integration

  # As the fixture's mix.exs makes them.
  defp script(version), do: "console.log('sample #{version}')"

  defp path(version),
    do: "/static/js/app-#{Base.encode16(:erlang.md5(script(version)), case: :lower)}.js"

  # What a node answers, asked without a connection.
  defp ask(instance, node, path) do
    eval!(instance, """
    :erpc.call(#{inspect(node)}, Sample.Assets, :get, [#{inspect(path)}, %{}]) |> Tuple.delete_at(1)
    """)
  end

  defp get(instance, path, headers \\ "") do
    {:ok, socket} =
      :gen_tcp.connect({127, 0, 0, 1}, instance.port, [:binary, active: false, packet: :http_bin])

    {:ok, response} = Http.request(socket, path, Wait.patience(), headers)
    :ok = :gen_tcp.close(socket)
    response
  end

  defp status(instance, path, headers \\ ""), do: get(instance, path, headers).status

  test "during a swap, after it, and after a rollback each version has the files of the other", %{
    tmp_dir: tmp_dir
  } do
    instance = start(tmp_dir)
    script = script("0.1.0")
    assert %{status: 200, body: ^script} = get(instance, path("0.1.0"))
    assert status(instance, path("0.2.0")) == 404

    tarball = SampleRelease.tarball("0.2.0")

    # A request holds the old peer until the new one has been asked.
    hold = Path.join(tmp_dir, "hold")
    held = held_request(instance, hold)
    upgrade = Task.async(fn -> upgrade(instance, tarball) end)
    Wait.until(fn -> log(instance) =~ "swap cutover version=0.2.0" end)

    assert %{status: 200, body: ^script, headers: %{"x-version" => "0.2.0"} = headers} =
             get(instance, path("0.1.0"))

    assert headers["content-type"] == "text/javascript"
    assert headers["cache-control"] =~ "immutable"
    assert headers["vary"] == "accept-encoding"
    refute headers["content-encoding"]

    # A page of the new version whose browser still has a connection to the old one.
    outgoing = eval_in_peer!(instance, "BeamDeploy.outgoing_peer()")
    assert ask(instance, outgoing, path("0.2.0")) == {200, script("0.2.0")}

    File.write!(hold, "")
    assert {:ok, %{body: "0.1.0"}} = Wait.await(held)
    assert Wait.await(upgrade) == :ok

    assert %{status: 200, body: packed, headers: headers} =
             get(instance, path("0.1.0"), "accept-encoding: br, gzip;q=0.8\r\n")

    assert headers["content-encoding"] == "gzip"
    assert :zlib.gunzip(packed) == script
    assert %{body: ^script} = get(instance, path("0.1.0"), "accept-encoding: gzip;q=0\r\n")

    # What carries no digest is the current version's alone; nothing else is served at all.
    assert status(instance, "/static/js/app.js") == 404
    assert status(instance, "/static/cache_manifest.json") == 404

    assert status(
             instance,
             "/static/js/../js" <> String.trim_leading(path("0.1.0"), "/static/js")
           ) == 404

    assert status(
             instance,
             "/static/js/%2e%2e" <> String.trim_leading(path("0.1.0"), "/static/js")
           ) == 404

    assert status(instance, "/static/%zz" <> String.trim_leading(path("0.1.0"), "/static")) == 404

    assert eval!(instance, "BeamDeploy.rollback()") == :ok
    assert version(instance) == "0.1.0"
    assert %{body: body} = get(instance, path("0.2.0"))
    assert body == script("0.2.0")
  end

  test "after a hot upgrade the pages that are open still find theirs", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    assert status(instance, path("0.2.0")) == 404
    tarball = SampleRelease.tarball("0.2.0")

    assert eval!(instance, "BeamDeploy.hot_upgrade(#{inspect(tarball)}, otp_app: :sample)") == :ok

    for version <- ["0.1.0", "0.2.0"],
        do: assert(get(instance, path(version)).body == script(version))
  end
end
