defmodule BeamDeploy.Integration.ListenerTest do
  # Listeners of real releases across swaps and crashes, under load.
  use ExUnit.Case, async: true

  import BeamDeploy.Test.Instance
  import BeamDeploy.Test.LogFile
  alias BeamDeploy.Test.{Http, Load, SampleRelease, Wait}

  @moduletag :tmp_dir
  @moduletag :integration

  @loopback {127, 0, 0, 1}
  @swaps 5

  # One that its own authority has signed, for this run alone.
  defp certificate(directory) do
    # SHA-1, the default, is refused by either side.
    strong = [digest: :sha256, key: {:namedCurve, :secp256r1}]
    made = :public_key.pkix_test_data(%{root: strong, peer: strong})
    entries = [certfile: {:Certificate, made[:cert]}, keyfile: made[:key]]

    for {name, {type, der}} <- entries do
      path = Path.join(directory, "#{name}.pem")
      File.write!(path, :public_key.pem_encode([{type, der, :not_encrypted}]))
      {name, path}
    end
  end

  # What each version listens on.
  defp listeners(by_version), do: %{"SAMPLE_LISTENERS" => inspect(by_version)}

  defp swap(instance, version),
    do: assert(upgrade(instance, SampleRelease.tarball(version)) == :ok)

  defp get(address, port, path \\ "/version") do
    with {:ok, socket} <-
           :gen_tcp.connect(address, port, [:binary, active: false, packet: :http_bin], 10_000) do
      response = Http.request(socket, path)
      :ok = :gen_tcp.close(socket)
      with {:ok, %{status: 200, body: body}} <- response, do: body
    end
  end

  test "swaps lose no request, on connections of their own or on kept ones", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    loads = for kind <- [:connect, :keepalive], do: {kind, Load.start(kind, instance.port)}
    for number <- 1..@swaps, do: swap(instance, Enum.at(["0.1.0", "0.2.0"], rem(number, 2)))

    for {kind, load} <- loads do
      assert %{failures: [], requests: requests} = Load.stop(load)
      assert requests > 100, "only #{requests} requests of the kind #{kind}"
    end

    refute log(instance) =~ "came too late"
  end

  test "while a peer that was killed is booted again its clients wait", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir)
    load = Load.start(:connect, instance.port)
    killed = peer_os_pid(instance)
    signal(killed, "KILL")
    # Waits in the queue as well.
    assert peer_os_pid(instance) != killed
    await_active(instance)
    assert %{failures: failures, requests: requests} = Load.stop(load)
    assert requests > 10
    # What the killed one was answering is lost with it: one request of each client at most.
    assert length(failures) <= 4
    assert Enum.all?(failures, &(&1 in [{:error, :closed}, {:error, :econnreset}]))
  end

  test "an incoming peer that ends before the old one has settled changes nothing", %{
    tmp_dir: tmp_dir
  } do
    instance = start(tmp_dir)
    tarball = SampleRelease.tarball("0.2.0")

    # With its acceptors suspended, connections stay in the old peer's queue.
    eval_in_peer!(instance, """
    spawn(fn ->
      for {_id, server, _type, [Sample.Http]} <- Supervisor.which_children(Sample.Supervisor),
          {_id, acceptor, _type, _modules} <- Supervisor.which_children(server),
          do: :erlang.suspend_process(acceptor)

      Process.register(self(), :suspender)

      receive do
        :resume -> :ok
      end
    end)
    """)

    Wait.until(fn -> eval_in_peer!(instance, "Process.whereis(:suspender)") != nil end)

    # Ten are taken by the driver on behalf of as many acceptors.
    clients =
      for _client <- 1..20 do
        {:ok, client} =
          :gen_tcp.connect(@loopback, instance.port, [:binary, active: false, packet: :http_bin])

        client
      end

    upgrade = Task.async(fn -> upgrade(instance, tarball) end)
    Wait.until(fn -> log(instance) =~ "swap health version=0.2.0" end)
    [incoming] = peer_os_pids(instance) -- [blue(instance)]
    signal(incoming, "KILL")
    assert {:error, {:boot_failed, %{version: "0.2.0"}}} = Wait.await(upgrade)
    refute log(instance) =~ "swap stop"

    eval_in_peer!(instance, "send(:suspender, :resume)")

    for client <- clients do
      assert {:ok, %{status: 200, body: "0.1.0"}} = Http.request(client, "/version")
      :ok = :gen_tcp.close(client)
    end

    assert version(instance) == "0.1.0"
    assert %{listeners: %{active: :blue}} = eval!(instance, "BeamDeploy.info()")
    swap(instance, "0.2.0")
  end

  defp blue(instance) do
    [pid] = for %{side: :blue, os_pid: pid} <- eval!(instance, "BeamDeploy.info()").peers, do: pid

    pid
  end

  test "a new version may add listeners, give some up and change its port", %{tmp_dir: tmp_dir} do
    [same, old, new] = for _port <- 1..3, do: Http.free_port()

    instance =
      start(tmp_dir,
        environment:
          listeners(%{
            "0.1.0" => [{same, ip: @loopback}, {old, ip: @loopback}],
            "0.2.0" => [{new, ip: @loopback}, {same, ip: @loopback}]
          })
      )

    assert get(@loopback, same) == "0.1.0"
    assert get(@loopback, old) == "0.1.0"
    assert get(@loopback, new) == {:error, :econnrefused}
    load = Load.start(:connect, same)

    swap(instance, "0.2.0")
    assert get(@loopback, same) == "0.2.0"
    assert get(@loopback, new) == "0.2.0"
    assert get(@loopback, old) == {:error, :econnrefused}

    swap(instance, "0.1.0")
    assert get(@loopback, old) == "0.1.0"
    assert get(@loopback, new) == {:error, :econnrefused}
    assert %{failures: []} = Load.stop(load)
  end

  test "a version that fails leaves none of its own listeners", %{tmp_dir: tmp_dir} do
    [old, new] = for _port <- 1..2, do: Http.free_port()

    instance =
      start(tmp_dir,
        environment:
          listeners(%{"0.1.0" => [{old, ip: @loopback}], "0.2.0" => [{new, ip: @loopback}]}),
        start_options: [health_timeout: 3_000]
      )

    tarball = SampleRelease.tarball("0.2.0", :unhealthy)
    assert {:error, {:health_check_failed, _details}} = upgrade(instance, tarball)
    assert get(@loopback, old) == "0.1.0"
    assert get(@loopback, new) == {:error, :econnrefused}
  end

  test "IPv6, dual stack and local sockets are handed over like others", %{tmp_dir: tmp_dir} do
    [dual, only] = for _port <- 1..2, do: Http.free_port()
    v6_loopback = {0, 0, 0, 0, 0, 0, 0, 1}
    # The kernel takes paths of 107 bytes.
    directory =
      Path.join(System.tmp_dir!(), "bd#{System.pid()}u#{System.unique_integer([:positive])}")

    File.mkdir!(directory)
    on_exit(fn -> File.rm_rf!(directory) end)
    path = Path.join(directory, "s")

    all = [
      {dual, [:inet6, ip: {0, 0, 0, 0, 0, 0, 0, 0}, ipv6_v6only: false]},
      {only, [:inet6, ip: v6_loopback, ipv6_v6only: true]},
      {0, [ip: {:local, path}]}
    ]

    instance = start(tmp_dir, environment: listeners(%{"0.1.0" => all, "0.2.0" => all}))
    ways = [{@loopback, dual}, {v6_loopback, dual}, {v6_loopback, only}, {{:local, path}, 0}]
    File.chmod!(path, 0o600)

    loads =
      for kind <- [:connect, :keepalive],
          way <- [{v6_loopback, dual}, {{:local, path}, 0}],
          do: Load.start(kind, way, 2)

    for version <- ["0.2.0", "0.1.0", "0.2.0"] do
      swap(instance, version)
      for {address, port} <- ways, do: assert(get(address, port) == version)
      assert get(@loopback, only) == {:error, :econnrefused}
      # What the application or an operator has made of it.
      assert Bitwise.band(File.stat!(path).mode, 0o777) == 0o600
    end

    for load <- loads, do: assert(%{failures: []} = Load.stop(load))

    {_output, 0} = rpc(instance, "System.stop()")
    await_exit(instance)
    assert File.ls!(directory) == []
  end

  test "TLS: ssl listens on the parent's socket as well", %{tmp_dir: tmp_dir} do
    # From Elixir 1.15 on Mix hides what the project does not list.
    if function_exported?(Mix, :ensure_application!, 1),
      do: apply(Mix, :ensure_application!, [:ssl])

    {:ok, _started} = Application.ensure_all_started(:ssl)
    port = Http.free_port()
    tls = [{port, ip: @loopback, tls: certificate(tmp_dir)}]
    tarballs = Map.new(["0.1.0", "0.2.0"], &{&1, SampleRelease.tarball(&1, :tls)})

    environment = listeners(%{"0.1.0" => tls, "0.2.0" => tls})
    instance = start(tmp_dir, variant: :tls, environment: environment)

    loads = for kind <- [:connect, :keepalive], do: {kind, Load.start(kind, {:tls, port})}

    for number <- 1..@swaps,
        do:
          assert(upgrade(instance, tarballs[Enum.at(["0.1.0", "0.2.0"], rem(number, 2))]) == :ok)

    for {kind, load} <- loads do
      assert %{failures: [], requests: requests} = Load.stop(load)
      assert requests > 100, "only #{requests} requests of the kind #{kind}"
    end
  end

  test "overlap can be asked for, and is said", %{tmp_dir: tmp_dir} do
    instance = start(tmp_dir, environment: %{"SAMPLE_OVERLAP" => "1"})
    assert_logged(instance, "plain SO_REUSEPORT")
    swap(instance, "0.2.0")
    assert version(instance) == "0.2.0"

    assert %{listeners: %{mode: :overlap, addresses: [%{mode: :overlap, sides: [:green]}]}} =
             eval!(instance, "BeamDeploy.info()")
  end
end
