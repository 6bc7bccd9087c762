defmodule BeamDeploy.Integration.LiveView do
  @moduledoc false
  # Responsible for: rendering connected LiveViews again with new code, without a page reload.
  # Not for: converting their state (they are GenServers like others).
  #
  # Phoenix.LiveView.Channel (1.x) answers `{:phoenix_live_reload, topic, path}` by marking every assign as changed and
  # rendering; the browser receives the difference. The message is its own hook for development, taken in any
  # environment.

  alias BeamDeploy.HotUpgrade.{Beam, Processes, Running}

  @channel :"Elixir.Phoenix.LiveView.Channel"

  @doc """
  Tells the LiveViews that one of the modules is, or all when one of them can be a part of any (`parts?`). Answers how
  many, or that this version of LiveView has no such hook.
  """
  @spec render_again(MapSet.t(module()), boolean()) ::
          {:ok, non_neg_integer()} | {:error, :unsupported}
  def render_again(modules, parts?) do
    case Enum.filter(connected(), fn {_pid, view} -> parts? or MapSet.member?(modules, view) end) do
      [] ->
        {:ok, 0}

      views ->
        if hook?() do
          Enum.each(views, fn {pid, _view} -> spawn(__MODULE__, :ask, [pid]) end)

          {:ok, length(views)}
        else
          {:error, :unsupported}
        end
    end
  end

  @doc false
  # In a process of its own: a view that is busy keeps nobody waiting, one that ends meanwhile ends only this.
  def ask(pid) do
    _state = :sys.replace_state(pid, &put_reloader/1, :infinity)
    send(pid, {:phoenix_live_reload, "beam_deploy", ""})
  end

  # Before it renders, a channel calls the reloader that it was given where code reloading is on (`socket.private`), and
  # ends without one. Ours has nothing to do: the code is loaded.
  defp put_reloader(%{socket: %{private: private} = socket} = state) do
    private = Map.put_new(private, :phoenix_reloader, {__MODULE__, :reloaded, []})
    %{state | socket: %{socket | private: private}}
  end

  defp put_reloader(state), do: state

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
