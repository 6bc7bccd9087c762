defmodule BeamDeploy.PeerNode.OwnListenersTest do
  # What is remembered is the node's.
  use ExUnit.Case, async: false

  alias BeamDeploy.PeerNode.OwnListeners

  @moduletag :tmp_dir

  defp listen(options) do
    {:ok, listener} = :gen_tcp.listen(0, [active: false] ++ options)
    :ok = OwnListeners.remember(listener)

    on_exit(fn ->
      for {{OwnListeners, _name} = key, true} <- :persistent_term.get(),
          do: :persistent_term.erase(key)
    end)

    listener
  end

  defp connect(listener, address) do
    {:ok, name} = :inet.sockname(listener)
    port = if match?({:local, _path}, name), do: 0, else: elem(name, 1)
    {:ok, client} = :gen_tcp.connect(address, port, active: false)
    {:ok, server} = :gen_tcp.accept(listener, 10_000)
    {client, server}
  end

  defp now, do: System.monotonic_time(:millisecond)

  test "there is nothing to wait for without any" do
    assert OwnListeners.await_end(:infinity) == 0
  end

  test "their connections are waited for, and no others", %{tmp_dir: tmp_dir} do
    path = Path.join(System.tmp_dir!(), "own-#{System.pid()}-#{:erlang.phash2(tmp_dir)}")
    on_exit(fn -> File.rm(path) end)
    foreign = elem(:gen_tcp.listen(0, active: false, ip: {127, 0, 0, 1}), 1)
    {_client, _server} = connect(foreign, {127, 0, 0, 1})

    for {options, address} <- [
          {[ip: {127, 0, 0, 1}], {127, 0, 0, 1}},
          # The listener's address is any, the connection's is one.
          {[], {127, 0, 0, 1}},
          {[:inet6], {0, 0, 0, 0, 0, 0, 0, 1}},
          {[ifaddr: {:local, path}], {:local, path}}
        ] do
      listener = listen(options)
      assert OwnListeners.await_end(:infinity) == 0
      {client, server} = connect(listener, address)
      assert OwnListeners.await_end(now() + 250) == 1

      waiting = Task.async(fn -> OwnListeners.await_end(:infinity) end)
      refute Task.yield(waiting, 250)
      :gen_tcp.close(server)
      assert Task.await(waiting) == 0
      :gen_tcp.close(client)
      :gen_tcp.close(listener)
    end
  end
end
