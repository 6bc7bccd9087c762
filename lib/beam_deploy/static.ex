defmodule BeamDeploy.Static do
  @moduledoc """
  Serves the digested static files of the other releases on this host, so that a page finds what it refers to whichever
  version it came from.

  With `mix phx.digest` each version's files have names of their own. For the seconds of a swap, and for as long as somebody
  leaves a page open, a version is asked for files that only another one has. Put this right after `Plug.Static`, with
  the same options:

      plug Plug.Static, at: "/", from: :my_app, gzip: true, only: MyAppWeb.static_paths()
      plug BeamDeploy.Static, at: "/", from: :my_app, only: MyAppWeb.static_paths()

  It answers GET and HEAD for names that carry a digest and that the `cache_manifest.json` of a release lists, of
  the releases that are still in the store (`:keep_releases`) and of both versions during a swap. Everything else, and
  everything outside of parent/peer mode, goes on to the next plug. Under such a name the contents never change: clients are told to
  keep them for a year. Where a compressed `.gz` lies beside the file, clients that take it get it.

  ## Options

    * `:from` - the application whose `priv/static` it is, or `{application, path}` for another directory of it. Required.
    * `:at` - where its files are in URLs, `"/"` by default.
    * `:only` - the first parts of paths that are served, all by default.
    * `:headers` - a list or map of headers to answer with as well.

  It needs no dependency but that on `:plug`, which whoever uses it has.
  """

  alias BeamDeploy.PeerNode.Digested

  @compile {:no_warn_undefined, [Plug.Conn, MIME]}

  @options [:from, :at, :only, :headers]
  @year "public, max-age=31536000, immutable"

  @doc false
  @spec init(keyword()) :: map()
  def init(options) do
    with [_ | _] = unknown <- Keyword.keys(options) -- @options do
      raise ArgumentError,
            "BeamDeploy.Static does not know #{inspect(unknown)}; it takes #{inspect(@options)}"
    end

    %{
      from: from(options[:from]),
      at: options |> Keyword.get(:at, "/") |> String.split("/", trim: true),
      only: options[:only],
      headers: Enum.to_list(options[:headers] || [])
    }
  end

  defp from(app) when is_atom(app) and app != nil, do: {app, "priv/static"}
  defp from({app, path}) when is_atom(app) and is_binary(path), do: {app, path}

  defp from(other) do
    raise ArgumentError,
          "BeamDeploy.Static takes :from as an application or as {application, path}, not #{inspect(other)}"
  end

  @doc false
  @spec call(struct(), map()) :: struct()
  def call(%{method: method} = conn, options) when method in ["GET", "HEAD"] do
    with {:ok, name} <- name(conn.path_info, options),
         {:ok, path} <- Digested.find(options.from, name),
         # Its release may have been removed meanwhile.
         true <- File.regular?(path) do
      serve(conn, name, path, options.headers)
    else
      _not_here -> conn
    end
  end

  def call(conn, _options), do: conn

  defp name(segments, %{at: at, only: only}) do
    with [first | _] = below <- below(segments, at),
         true <- only == nil or first in only,
         {:ok, name} <- below |> Enum.join("/") |> decode(),
         true <- Digested.name?(name) do
      {:ok, name}
    else
      _not_ours -> :error
    end
  end

  defp below(segments, at) do
    case Enum.split(segments, length(at)) do
      {^at, below} -> below
      _elsewhere -> []
    end
  end

  defp decode(path) do
    {:ok, URI.decode(path)}
  rescue
    # What is no URL is for others to refuse.
    ArgumentError -> :error
  end

  defp serve(conn, name, path, headers) do
    compressed = path <> ".gz"
    compressed? = File.regular?(compressed)

    conn =
      for(
        {name, value} <-
          [{"content-type", MIME.from_path(name)}, {"cache-control", @year}] ++
            if(compressed?, do: [{"vary", "accept-encoding"}], else: []) ++ headers,
        reduce: conn,
        do: (conn -> Plug.Conn.put_resp_header(conn, name, value))
      )

    conn =
      if compressed? and takes_gzip?(Plug.Conn.get_req_header(conn, "accept-encoding")),
        do: conn |> Plug.Conn.put_resp_header("content-encoding", "gzip") |> answer(compressed),
        else: answer(conn, path)

    Plug.Conn.halt(conn)
  end

  defp answer(conn, path), do: Plug.Conn.send_file(conn, 200, path)

  defp takes_gzip?(headers) do
    Enum.any?(headers, fn header ->
      header |> String.downcase() |> String.split(",") |> Enum.any?(&gzip?/1)
    end)
  end

  defp gzip?(coding) do
    case coding |> String.split(";") |> Enum.map(&String.trim/1) do
      ["gzip" | parameters] -> not Enum.any?(parameters, &(&1 =~ ~r/^q=0(\.0*)?$/))
      _other -> false
    end
  end
end
