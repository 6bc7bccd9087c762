defmodule BeamDeploy.Integration.StaticManifest do
  @moduledoc false
  # Responsible for: Phoenix endpoints reading their manifest of digested static files again; under which names they serve
  # stylesheets that changed.
  # Not for: the files, which are found by the code path, or telling pages.
  #
  # An endpoint keeps the manifest in its configuration table since it was started. Its `config_change/2`, which an
  # application's own callback calls, clears what is cached and reads the manifest again, also when nothing changed.

  alias BeamDeploy.HotUpgrade.Processes

  @digested ~r/-[0-9a-f]{32}(\.[^.\/]*)$/

  @doc "Answers the endpoints that read it."
  @spec reload() :: [module()]
  def reload do
    for endpoint <- endpoints(), function_exported?(endpoint, :config_change, 2) do
      endpoint.config_change([], [])
      endpoint
    end
  end

  @doc """
  Where the stylesheets among these files (`APP/priv/static/...`) are served from now on, by what they are called without a
  digest. Where an endpoint digests nothing, the address says by the contents that they are others.
  """
  @spec stylesheets([Path.t()]) :: %{String.t() => String.t()}
  def stylesheets(files) do
    for endpoint <- endpoints(),
        function_exported?(endpoint, :static_path, 1),
        app = endpoint.config(:otp_app),
        prefix = "#{app}/priv/static/",
        file <- files,
        Path.extname(file) == ".css" and String.starts_with?(file, prefix),
        not (file =~ @digested),
        name = String.replace_prefix(file, prefix, ""),
        {:ok, contents} <- [File.read(Application.app_dir(app, ["priv/static/", name]))],
        into: %{} do
      path = endpoint.static_path("/" <> name)
      bare = path |> String.split("?") |> hd()

      {Regex.replace(@digested, bare, "\\1"),
       if(bare =~ @digested, do: path, else: bare <> mark(contents))}
    end
  end

  defp mark(contents),
    do: "?vsn=" <> (contents |> :erlang.md5() |> Base.encode16(case: :lower) |> binary_part(0, 8))

  defp endpoints do
    for {pid, _call} <-
          Processes.by_initial_call(
            &match?({:supervisor, :"Elixir.Phoenix.Endpoint.Supervisor", 1}, &1)
          ),
        {:registered_name, endpoint} when is_atom(endpoint) <- [
          Process.info(pid, :registered_name)
        ],
        do: endpoint
  end
end
