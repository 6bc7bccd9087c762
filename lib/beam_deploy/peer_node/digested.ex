defmodule BeamDeploy.PeerNode.Digested do
  @moduledoc false
  # Responsible for: where the digested static files lie that the releases on this host have.
  # Not for: serving them (`BeamDeploy.Static`), or which releases there are (the parent knows).
  #
  # A peer asks its parent once, and again only when there can be more than before: when the other peer of a swap comes
  # or goes, and when a hot upgrade has given the application another directory. Names that no release has, of which
  # anybody can ask for as many as he likes, cost a look into a map.

  alias BeamDeploy.{PeerNode, Remote}

  @manifest "cache_manifest.json"
  @timeout 5_000

  @type from :: {application :: atom(), directory :: Path.t()}
  @type index :: %{String.t() => Path.t()}

  @doc "Whether a relative path may name a digested file, by its form: `mix phx.digest` puts the MD5 before the extension."
  @spec name?(String.t()) :: boolean()
  def name?(name),
    do: name =~ ~r/-[0-9a-f]{32}(\.[^\/]*)?\z/ and String.valid?(name) and safe?(name)

  defp safe?(name) do
    Path.type(name) == :relative and not String.contains?(name, ["\\", <<0>>]) and
      Enum.all?(String.split(name, "/"), &(&1 not in ["", ".", ".."]))
  end

  @doc "The path of a digested file, whichever release has it."
  @spec find(from(), String.t()) :: {:ok, Path.t()} | :error
  def find({app, _directory} = from, name) do
    case PeerNode.identity() do
      nil ->
        :error

      identity ->
        from |> current({identity.incoming, identity.outgoing, home(app)}) |> Map.fetch(name)
    end
  end

  # Requests that come while one of them looks wait for what it finds.
  defp current(from, circumstances) do
    with :unknown <- known(from, circumstances) do
      :global.trans(
        {{__MODULE__, from}, self()},
        fn ->
          with :unknown <- known(from, circumstances), do: look(from, circumstances)
        end,
        [node()]
      )
    end
  end

  defp known(from, circumstances) do
    case :persistent_term.get({__MODULE__, from}, nil) do
      {^circumstances, index} -> index
      _none -> :unknown
    end
  end

  defp look(from, circumstances) do
    case roots() do
      {:ok, roots} ->
        index = index(roots, from)
        :persistent_term.put({__MODULE__, from}, {circumstances, index})
        index

      :error ->
        %{}
    end
  end

  defp roots do
    {:ok, :erpc.call(PeerNode.identity().parent, Remote, :release_roots, [], @timeout)}
  catch
    # A parent of version 1 knows no such function: it keeps the releases, but does not say where.
    :error, {:exception, :undef, _stack} -> {:ok, []}
    :error, {:erpc, _reason} -> :error
  end

  defp home(app) do
    case :code.lib_dir(app) do
      {:error, :bad_name} -> nil
      directory -> directory
    end
  end

  @doc "Names and paths of what the manifests of these releases list; the first release that has a name wins. Reads only."
  @spec index([Path.t()], from()) :: index()
  def index(roots, {app, directory}) do
    for root <- roots,
        library <- libraries(root, "#{app}-"),
        below = Path.join([root, "lib", library, directory]),
        {:ok, manifest} <- [File.read(Path.join(below, @manifest))],
        name <- names(manifest),
        reduce: %{} do
      index -> Map.put_new(index, name, Path.join(below, name))
    end
  end

  defp libraries(root, prefix) do
    case File.ls(Path.join(root, "lib")) do
      {:ok, names} -> names |> Enum.filter(&String.starts_with?(&1, prefix)) |> Enum.sort(:desc)
      {:error, _posix} -> []
    end
  end

  # Every string of the JSON that has the form of such a name: they are the keys of its "digests" and the values of its
  # "latest". Outside of strings JSON has no quotation marks, so this needs nobody's JSON library.
  defp names(manifest) do
    for [string] <- Regex.scan(~r/"((?:[^"\\]|\\.)*)"/s, manifest, capture: :all_but_first),
        name?(string),
        do: string
  end
end
