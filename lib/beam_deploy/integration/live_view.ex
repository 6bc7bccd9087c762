defmodule BeamDeploy.Integration.LiveView do
  @moduledoc false
  # Responsible for: rendering connected LiveViews again with new code, without a page reload.
  # Not for: converting their state (they are GenServers like others).
  #
  # Stylesheets stand in the root layout, which is not a part of any view. So the pages are told by an event, and
  # priv/static/beam_deploy.js, where a page has it, puts the new ones in place.
  #
  # Phoenix.LiveView.Channel (1.x) answers `{:phoenix_live_reload, topic, path}` by marking every assign as changed and
  # rendering; the browser receives the difference. The message is its own hook for development, taken in any
  # environment.

  alias BeamDeploy.HotUpgrade.{Beam, Processes, Running}

  @compile {:no_warn_undefined, Phoenix.LiveView}
  @event "beam_deploy:stylesheets"

  @channel :"Elixir.Phoenix.LiveView.Channel"

  @doc """
  Tells the LiveViews that one of the modules is, or all when one of them can be a part of any (`parts?`) or when there are
  changed stylesheets, by their names and paths. Answers how many, or that this version of LiveView has no such hook.
  """
  @spec render_again(MapSet.t(module()), boolean(), %{String.t() => String.t()}) ::
          {:ok, non_neg_integer()} | {:error, :unsupported}
  def render_again(modules, parts?, stylesheets \\ %{}) do
    all? = parts? or stylesheets != %{}

    case Enum.filter(connected(), fn {_pid, view} -> all? or MapSet.member?(modules, view) end) do
      [] ->
        {:ok, 0}

      views ->
        if hook?() do
          Enum.each(views, fn {pid, _view} -> spawn(__MODULE__, :ask, [pid, stylesheets]) end)

          {:ok, length(views)}
        else
          {:error, :unsupported}
        end
    end
  end

  @doc false
  # In a process of its own: a view that is busy keeps nobody waiting, one that ends meanwhile ends only this.
  def ask(pid, stylesheets) do
    _state = :sys.replace_state(pid, &(&1 |> put_reloader() |> tell(stylesheets)), :infinity)
    send(pid, {:phoenix_live_reload, "beam_deploy", ""})
  end

  # Before it renders, a channel calls the reloader that it was given where code reloading is on (`socket.private`), and
  # ends without one. Ours has nothing to do: the code is loaded.
  defp put_reloader(%{socket: %{private: private} = socket} = state) do
    private = Map.put_new(private, :phoenix_reloader, {__MODULE__, :reloaded, []})
    %{state | socket: %{socket | private: private}}
  end

  defp put_reloader(state), do: state

  # Goes to the browser with what is rendered next.
  defp tell(%{socket: socket} = state, stylesheets) when stylesheets != %{},
    do: %{
      state
      | socket: Phoenix.LiveView.push_event(socket, @event, %{stylesheets: stylesheets})
    }

  defp tell(state, _stylesheets), do: state

  @doc false
  def reloaded(_endpoint), do: :ok

  # A channel notes its view as `{view, :mount, 3}`.
  defp connected do
    if :code.is_loaded(@channel) do
      for {pid, {view, :mount, 3}} <- Processes.by_initial_call(&match?({_view, :mount, 3}, &1)),
          function_exported?(view, :__live__, 0),
          do: {pid, view}
    else
      []
    end
  end

  defp hook? do
    with {:ok, _path, beam} <- Running.object_code(@channel),
         {:ok, names} <- Beam.names(beam) do
      "phoenix_live_reload" in names
    else
      _unknown -> false
    end
  end
end
