defmodule BeamDeploy.BlueGreen.PeerTest do
  use ExUnit.Case, async: true

  alias BeamDeploy.BlueGreen.Peer

  test "a peer is named after its parent and its side, on the parent's host or another" do
    assert Peer.node_name(:"my_app@10.0.0.1", :blue, nil) == :"my_app_blue@10.0.0.1"
    assert Peer.node_name(:"my_app@10.0.0.1", :green, "127.0.0.1") == :"my_app_green@127.0.0.1"
  end
end
