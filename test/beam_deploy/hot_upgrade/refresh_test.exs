defmodule BeamDeploy.HotUpgrade.RefreshTest do
  # Phoenix and LiveView are not here; what stands for them does what their sources do.
  use ExUnit.Case, async: false

  alias BeamDeploy.HotUpgrade.Supervision
  alias BeamDeploy.Integration.{LiveView, StaticManifest}
  alias BeamDeploy.Test.Beams

  @moduletag :tmp_dir

  # Loaded from files, since the hook is looked for in the object code.
  defp load(dir, source) do
    for {module, beam} <- Beams.elixir(source) do
      path = dir |> Path.join("#{module}.beam") |> String.to_charlist()
      File.write!(path, beam)
      {:module, ^module} = :code.load_binary(module, path, beam)

      on_exit(fn ->
        :code.purge(module)
        :code.delete(module)
        :code.purge(module)
      end)
    end
  end

  defp channel(hook) do
    """
    defmodule Phoenix.LiveView.Channel do
      use GenServer
      def init({view, test}) do
        Process.put(:"$initial_call", {view, :mount, 3})
        {:ok, {view, test}}
      end
      #{hook}
      def handle_info(other, {view, test}) do
        send(test, {:other, view, other})
        {:noreply, {view, test}}
      end
    end

    defmodule BD.Page do
      def __live__, do: :live
    end

    defmodule BD.Form do
      def __live__, do: :live
    end
    """
  end

  @hook """
  def handle_info({:phoenix_live_reload, _topic, _path}, {view, test}) do
    send(test, {:rendered, view})
    {:noreply, {view, test}}
  end
  """

  # With a state like a channel's, of which the socket is changed from outside.
  @channel_with_socket """
  defmodule Phoenix.LiveView.Channel do
    use GenServer

    def init({view, test}) do
      Process.put(:"$initial_call", {view, :mount, 3})
      {:ok, %{socket: %{private: %{}}, test: test}}
    end

    def handle_info({:phoenix_live_reload, _topic, _path}, state) do
      send(state.test, {:rendered, state.socket})
      {:noreply, state}
    end
  end

  defmodule BD.Form do
    def __live__, do: :live
  end

  defmodule Phoenix.LiveView do
    def push_event(socket, event, payload), do: Map.put(socket, :event, {event, payload})
  end
  """

  @digest String.duplicate("0123abcd", 4)

  defp open(view) do
    {:ok, pid} = GenServer.start_link(:"Elixir.Phoenix.LiveView.Channel", {view, self()})
    pid
  end

  test "views are rendered again when they changed, all when a part may have", %{tmp_dir: dir} do
    load(dir, channel(@hook))
    page = :"Elixir.BD.Page"
    form = :"Elixir.BD.Form"
    views = Enum.map([page, form], &open/1)

    assert LiveView.render_again(MapSet.new([page]), false) == {:ok, 1}
    # By when they answer they have done what they were told.
    Enum.each(views, &:sys.get_state/1)
    assert_received {:rendered, ^page}
    refute_received {:rendered, _view}
    assert LiveView.render_again(MapSet.new([]), true) == {:ok, 2}
    assert_receive {:rendered, ^page}
    assert_receive {:rendered, ^form}
  end

  test "with changed stylesheets every view tells its page, in what it renders", %{tmp_dir: dir} do
    load(dir, @channel_with_socket)
    open(:"Elixir.BD.Form")
    stylesheets = %{"/app.css" => "/app-#{@digest}.css?vsn=d"}
    assert LiveView.render_again(MapSet.new([]), false, stylesheets) == {:ok, 1}
    assert_receive {:rendered, %{event: {"beam_deploy:stylesheets", payload}}}
    assert payload == %{stylesheets: stylesheets}
    assert LiveView.render_again(MapSet.new([]), false, %{}) == {:ok, 0}
  end

  test "a LiveView without the hook is sent nothing", %{tmp_dir: dir} do
    load(dir, channel(""))
    view = open(:"Elixir.BD.Page")
    assert LiveView.render_again(MapSet.new([:"Elixir.BD.Page"]), false) == {:error, :unsupported}
    _state = :sys.get_state(view)
    refute_received _anything
  end

  test "without LiveView there is nothing to do" do
    assert LiveView.render_again(MapSet.new([__MODULE__]), true) == {:ok, 0}
  end

  @endpoint_supervisor """
  defmodule Phoenix.Endpoint.Supervisor do
    use Supervisor
    def init(_), do: Supervisor.init([], strategy: :one_for_one)
  end
  """

  test "endpoints read their manifest again", %{tmp_dir: dir} do
    load(dir, """
    #{@endpoint_supervisor}

    defmodule BD.Endpoint do
      def config_change(changed, removed), do: :persistent_term.put(BD.Endpoint, {changed, removed})
    end
    """)

    endpoint = :"Elixir.BD.Endpoint"
    {:ok, _pid} = Supervisor.start_link(:"Elixir.Phoenix.Endpoint.Supervisor", [], name: endpoint)
    assert StaticManifest.reload() == [endpoint]
    assert :persistent_term.get(endpoint) == {[], []}
  end

  test "changed stylesheets are named as the endpoint serves them from now on", %{tmp_dir: dir} do
    load(dir, """
    #{@endpoint_supervisor}

    defmodule BD.Styled do
      def config(:otp_app), do: :bd_styled
      def static_path("/digested.css"), do: "/below/digested-#{@digest}.css?vsn=d"
      def static_path(path), do: "/below" <> path
    end
    """)

    endpoint = :"Elixir.BD.Styled"
    {:ok, _pid} = Supervisor.start_link(:"Elixir.Phoenix.Endpoint.Supervisor", [], name: endpoint)

    # Where the application's files lie.
    static = Path.join(dir, "bd_styled-1/priv/static/css")
    File.mkdir_p!(static)
    ebin = Path.join(dir, "bd_styled-1/ebin")
    File.mkdir_p!(ebin)
    true = :code.add_path(String.to_charlist(ebin))
    on_exit(fn -> :code.del_path(String.to_charlist(ebin)) end)

    for name <- ["digested.css", "css/plain.css", "app.js", "digested-#{@digest}.css"],
        do: File.write!(Path.join([static, "..", name]), name)

    mark = "css/plain.css" |> :erlang.md5() |> Base.encode16(case: :lower) |> binary_part(0, 8)

    assert StaticManifest.stylesheets([
             "bd_styled/priv/static/digested.css",
             "bd_styled/priv/static/digested-#{@digest}.css",
             "bd_styled/priv/static/css/plain.css",
             "bd_styled/priv/static/app.js",
             "bd_styled/priv/static/gone.css",
             "other/priv/static/digested.css"
           ]) == %{
             "/below/digested.css" => "/below/digested-#{@digest}.css?vsn=d",
             "/below/css/plain.css" => "/below/css/plain.css?vsn=#{mark}"
           }
  end

  defmodule Top do
    use Supervisor

    def init(table),
      do: Supervisor.init(:ets.lookup_element(table, :children, 2), strategy: :one_for_one)
  end

  test "children that supervisors gained are started, lost ones stopped, stopped ones left" do
    table = :ets.new(:children, [:public])

    child = fn id, options ->
      Map.merge(%{id: id, start: {Agent, :start_link, [fn -> id end]}}, Map.new(options))
    end

    fails = %{id: :fails, start: {:erlang, :apply, [fn -> {:error, :no} end, []]}}
    :ets.insert(table, {:children, [child.(:stays, []), child.(:lost, []), child.(:stopped, [])]})
    {:ok, top} = Supervisor.start_link(Top, table)
    :ok = Supervisor.terminate_child(top, :stopped)
    before = Supervision.stopped(top)

    :ets.insert(
      table,
      {:children, [child.(:gained, []), child.(:stays, []), child.(:stopped, []), fails]}
    )

    :ok = :sys.suspend(top)
    :ok = :sys.change_code(top, Top, nil, [])
    :ok = :sys.resume(top)

    assert Supervision.follow(top, Top, before) == [{Top, :fails, :no}]

    children =
      for {id, pid, _, _} <- Supervisor.which_children(top), into: %{}, do: {id, is_pid(pid)}

    assert children == %{gained: true, stays: true, stopped: false, fails: false}
  end
end
