defmodule BeamDeploy.IntegrationTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.Integration
  alias BeamDeploy.Integration.{Cowboy, CowboyStream, Phoenix}

  @bandit :"Elixir.Bandit.PhoenixAdapter"
  @cowboy :"Elixir.Phoenix.Endpoint.Cowboy2Adapter"
  @cowboy_handlers [CowboyStream, :cowboy_stream_h]
  @goaway [goaway_complete_timeout: :infinity]

  # Answers with descriptor 7 and tells the test which address was asked for.
  defp acquire({ip, _port, _only_v6} = address) do
    send(self(), {:acquired, address})
    {:adopt, 7, if(tuple_size(ip) == 8, do: :inet6, else: :inet)}
  end

  defp adopt!(config) do
    {:ok, adopted} = Phoenix.adopt(config, &acquire/1)
    adopted
  end

  defp bandit(http), do: [adapter: @bandit, server: true, http: http]
  defp cowboy(http), do: [adapter: @cowboy, server: true, http: http]

  describe "Phoenix endpoints" do
    test "with Bandit listen on the descriptor, and keep the port in their URLs" do
      adopted = adopt!(bandit(ip: {127, 0, 0, 1}, port: 4100))
      assert_received {:acquired, {{127, 0, 0, 1}, 4100, nil}}

      assert adopted[:http] == [
               port: 4100,
               thousand_island_options: [port: 0, transport_options: [:inet, fd: 7]]
             ]

      assert adopted[:url] == [port: 4100]
    end

    test "with Cowboy listen on the descriptor, and keep the port in their URLs" do
      adopted = adopt!(cowboy(ip: {127, 0, 0, 1}, port: 4100))
      assert_received {:acquired, {{127, 0, 0, 1}, 4100, nil}}

      assert Enum.sort(adopted[:http]) ==
               Enum.sort(
                 port: 0,
                 transport_options: [socket_opts: [fd: 7]],
                 stream_handlers: @cowboy_handlers,
                 protocol_options: @goaway
               )

      assert adopted[:url] == [port: 4100]
    end

    test "without an adapter are Cowboy's" do
      adopted = adopt!(server: true, http: [port: 4100])
      assert adopted[:http][:transport_options] == [socket_opts: [fd: 7]]
    end

    test "keep their listeners when they are given another configuration" do
      adopted = [
        http: [port: 4000, thousand_island_options: [port: 0]],
        url: [host: "a", port: 4000],
        secret: 1
      ]

      next = [http: [port: 4000], url: [host: "b"], secret: 2]

      assert Enum.sort(Phoenix.keep_listeners(next, adopted)) == [
               http: adopted[:http],
               secret: 2,
               url: [port: 4000, host: "b"]
             ]

      assert Phoenix.keep_listeners([url: [port: 443]], adopted)[:url] == [port: 443]
      assert Phoenix.keep_listeners(next, []) == next
    end

    test "that do not serve are left alone" do
      for config <- [
            [adapter: @bandit, http: [port: 4100]],
            [adapter: @bandit, server: false, http: [port: 4100]],
            [adapter: Some.Other, server: true, http: [port: 4100]]
          ] do
        assert adopt!(config) == config
      end

      assert adopt!(bandit(false))[:http] == false
      refute_received {:acquired, _address}
    end

    test "are served over http and https" do
      for adapter <- [@bandit, @cowboy] do
        adopted =
          adopt!(
            adapter: adapter,
            server: true,
            http: [port: 4100],
            https: [port: 4143, certfile: "c", keyfile: "k"]
          )

        assert_received {:acquired, {{0, 0, 0, 0}, 4100, nil}}
        assert_received {:acquired, {{0, 0, 0, 0}, 4143, nil}}
        assert {:certfile, "c"} in adopted[:https]
        # Phoenix's URLs are those of https where there is both.
        assert adopted[:url] == [port: 4143]
      end
    end

    test "have their own default ports, and ports in the forms that Phoenix takes" do
      System.put_env("BEAM_DEPLOY_TEST_PORT", "4105")

      for {http, port} <- [
            {[], 4000},
            {[port: "4104"], 4104},
            {[port: {:system, "BEAM_DEPLOY_TEST_PORT"}], 4105}
          ],
          config <- [bandit(http), cowboy(http)] do
        adopt!(config)
        assert_received {:acquired, {{0, 0, 0, 0}, ^port, nil}}
      end

      adopt!(adapter: @bandit, server: true, https: [])
      assert_received {:acquired, {{0, 0, 0, 0}, 4040, nil}}
    end

    test "with a URL of their own keep it" do
      config = bandit(port: 4100) ++ [url: [host: "example.com", port: 443, scheme: "https"]]
      assert Enum.sort(adopt!(config)[:url]) == Enum.sort(config[:url])

      assert adopt!(bandit(port: 4100) ++ [url: [host: "example.com"]])[:url] |> Enum.sort() ==
               [host: "example.com", port: 4100]
    end

    test "are served over IPv6, both families or one" do
      any = {0, 0, 0, 0, 0, 0, 0, 0}

      for {http, address} <- [
            {[ip: {0, 0, 0, 0, 0, 0, 0, 1}, port: 4100], {{0, 0, 0, 0, 0, 0, 0, 1}, 4100, nil}},
            {[:inet6, port: 4100], {any, 4100, nil}},
            {[:inet6, ip: :loopback, port: 4100], {{0, 0, 0, 0, 0, 0, 0, 1}, 4100, nil}}
          ] do
        adopted = adopt!(bandit(http))
        assert_received {:acquired, ^address}

        assert adopted[:http][:thousand_island_options] == [
                 port: 0,
                 transport_options: [:inet6, fd: 7]
               ]

        refute :inet6 in adopted[:http]

        adopted = adopt!(cowboy(http))
        assert_received {:acquired, ^address}
        assert hd(adopted[:http]) == :inet6
        assert adopted[:http][:transport_options] == [socket_opts: [fd: 7]]
      end

      transport = [ip: any, ipv6_v6only: false]
      adopt!(bandit(port: 4100, thousand_island_options: [transport_options: transport]))
      assert_received {:acquired, {^any, 4100, false}}
      adopt!(cowboy(port: 4100, transport_options: [socket_opts: transport]))
      assert_received {:acquired, {^any, 4100, false}}
      adopt!(cowboy(port: 4100, ip: any, ipv6_v6only: true))
      assert_received {:acquired, {^any, 4100, true}}
    end

    test "keep what they say of other things" do
      adopted =
        adopt!(
          bandit(
            port: 4100,
            http_1_options: [max_requests: 5],
            thousand_island_options: [
              num_acceptors: 3,
              num_listen_sockets: 2,
              transport_options: [backlog: 9, reuseport: true]
            ]
          )
        )

      assert adopted[:http][:http_1_options] == [max_requests: 5]

      assert Enum.sort(adopted[:http][:thousand_island_options]) == [
               num_acceptors: 3,
               port: 0,
               transport_options: [:inet, {:fd, 7}, {:backlog, 9}]
             ]

      adopted =
        adopt!(
          cowboy(
            port: 4100,
            protocol_options: [idle_timeout: 1, goaway_complete_timeout: 5],
            stream_handlers: [:mine],
            transport_options: [num_acceptors: 3, socket_opts: [backlog: 9, ip: {127, 0, 0, 1}]]
          )
        )

      assert_received {:acquired, {{127, 0, 0, 1}, 4100, nil}}
      assert adopted[:http][:stream_handlers] == [CowboyStream, :mine]
      assert adopted[:http][:protocol_options] == [idle_timeout: 1, goaway_complete_timeout: 5]

      assert Enum.sort(adopted[:http][:transport_options]) == [
               num_acceptors: 3,
               socket_opts: [fd: 7, backlog: 9]
             ]
    end

    test "on a local socket listen on the parent's" do
      acquire = fn address ->
        send(self(), {:acquired, address})
        {:adopt, 7, :local}
      end

      http = [ip: {:local, "/run/x.sock"}, port: 0]

      {:ok, adopted} = Phoenix.adopt(bandit(http), acquire)
      assert_received {:acquired, {{:local, "/run/x.sock"}, 0, nil}}

      assert adopted[:http][:thousand_island_options] ==
               [port: 0, transport_options: [:local, fd: 7]]

      refute Keyword.has_key?(adopted[:http], :ip)

      {:ok, adopted} = Phoenix.adopt(cowboy(http), acquire)
      assert_received {:acquired, {{:local, "/run/x.sock"}, 0, nil}}
      assert adopted[:http][:transport_options] == [socket_opts: [:local, fd: 7]]
      refute Keyword.has_key?(adopted[:http], :ip)
    end

    test "on a port that the system chooses, or at an address that cannot be shared, listen by themselves" do
      for http <- [[port: 0], [ip: {:undefined, "x"}, port: 4100]] do
        assert adopt!(bandit(http))[:http] == http
        # Their connections drain all the same.
        assert adopt!(cowboy(http))[:http][:stream_handlers] == @cowboy_handlers
      end

      refute_received {:acquired, _address}
    end

    test "share their port where sockets cannot be steered" do
      share = fn _address -> :share end
      reuse = BeamDeploy.PeerNode.Servers.reuse_port()

      {:ok, adopted} = Phoenix.adopt(bandit(port: 4100), share)
      assert adopted[:http][:port] == 4100
      assert adopted[:http][:thousand_island_options] == [transport_options: [reuse]]

      {:ok, adopted} = Phoenix.adopt(cowboy(port: 4100), share)
      assert adopted[:http][:port] == 4100
      assert adopted[:http][:transport_options] == [socket_opts: [reuse]]
    end

    test "that cannot listen are an error that names the scheme" do
      refused = fn _address -> {:error, :eacces} end
      assert Phoenix.adopt(bandit(port: 80), refused) == {:error, {:http, :eacces}}
    end
  end

  describe "Cowboy's stream handlers" do
    test "are those that Plug.Cowboy would make" do
      assert Cowboy.drainable(compress: true) |> Enum.sort() ==
               Enum.sort(
                 stream_handlers: [CowboyStream, :cowboy_compress_h, :cowboy_stream_h],
                 protocol_options: @goaway
               )
    end
  end

  describe "servers that the user starts" do
    test "Bandit" do
      options = [plug: My.Plug, scheme: :https, ip: :loopback]
      assert {:ok, adopted} = Integration.adopt_server(Bandit, options, &acquire/1)
      assert_received {:acquired, {{127, 0, 0, 1}, 4040, nil}}

      assert adopted == [
               plug: My.Plug,
               scheme: :https,
               thousand_island_options: [port: 0, transport_options: [:inet, fd: 7]]
             ]
    end

    test "Thousand Island" do
      options = [port: 4100, handler_module: My.Handler, transport_options: [ip: {127, 0, 0, 1}]]
      assert {:ok, adopted} = Integration.adopt_server(ThousandIsland, options, &acquire/1)
      assert_received {:acquired, {{127, 0, 0, 1}, 4100, nil}}

      assert Enum.sort(adopted) ==
               [
                 handler_module: My.Handler,
                 port: 0,
                 transport_options: [:inet, fd: 7]
               ]
    end

    test "Plug.Cowboy, with options at either place" do
      for options <- [
            [scheme: :http, plug: My.Plug, port: 4100],
            [scheme: :http, plug: My.Plug, options: [port: 4100]]
          ] do
        assert {:ok, adopted} = Integration.adopt_server(Plug.Cowboy, options, &acquire/1)
        assert_received {:acquired, {{0, 0, 0, 0}, 4100, nil}}
        assert adopted[:scheme] == :http
        assert adopted[:plug] == My.Plug
        assert adopted[:options][:transport_options] == [socket_opts: [fd: 7]]
        assert adopted[:options][:stream_handlers] == @cowboy_handlers
      end
    end

    test "Ranch" do
      for options <- [[port: 4100, nodelay: true], %{socket_opts: [port: 4100, nodelay: true]}] do
        assert {:ok, %{socket_opts: socket}} =
                 Integration.adopt_server(:ranch, options, &acquire/1)

        assert_received {:acquired, {{0, 0, 0, 0}, 4100, nil}}
        assert Enum.sort(socket) == [fd: 7, nodelay: true, port: 0]
      end

      options = %{num_acceptors: 2, socket_opts: [:inet6, port: 4100]}
      assert {:ok, adopted} = Integration.adopt_server(:ranch, options, &acquire/1)
      assert adopted == %{num_acceptors: 2, socket_opts: [:inet6, {:port, 0}, {:fd, 7}]}
    end

    test "are as they were outside of a peer" do
      assert BeamDeploy.server_options(Bandit, port: 4100) == [port: 4100]

      assert_raise FunctionClauseError, fn ->
        apply(BeamDeploy, :server_options, [My.Server, []])
      end
    end
  end
end
