defmodule BeamDeploy.HotUpgrade.SysConfig do
  @moduledoc false
  # Responsible for: the configuration files of a release: read and evaluated as a boot would, and the places in them
  # that name the release's own version.
  # Not for: the running node's environment (AppData).

  @evaluate_timeout 30_000

  @doc """
  A configuration file in a form in which two releases can be compared: without the version in `releases/VERSION/`, and
  maps by their keys.
  """
  @spec comparable(String.t(), binary(), String.t()) :: binary()
  def comparable(name, text, version) do
    text = rename(text, version, "VERSION")
    if name == "sys.config", do: sort_maps(text), else: text
  end

  # From OTP 26 on, the order in which a map is printed differs from one VM to the next, and so between two builds of the
  # same source. The file is not parsed for it: that would make atoms of what an archive holds.
  @tokens ~r/'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|#\{|<<|>>|[{}\[\](),]|[^'"#<>{}\[\](),]+|./s

  defp sort_maps(text) do
    @tokens
    |> Regex.scan(text)
    |> Enum.reduce([{:plain, [], []}], fn [token], open -> nest(token, open) end)
    |> Enum.reverse()
    |> Enum.map(&print/1)
    |> IO.iodata_to_binary()
  end

  # What is open, innermost first: its kind, the elements that are complete, and the one that is not, both backwards.
  defp nest("\#{", open), do: [{:map, [], []} | open]
  defp nest(token, open) when token in ["{", "[", "(", "<<"], do: [{:plain, [], [token]} | open]

  defp nest(token, [inner, {kind, elements, element} | outer])
       when token in ["}", "]", ")", ">>"],
       do: [{kind, elements, [[print(inner), token] | element]} | outer]

  defp nest(",", [{:map, elements, element} | outer]),
    do: [{:map, [Enum.reverse(element) | elements], []} | outer]

  defp nest(token, [{kind, elements, element} | outer]),
    do: [{kind, elements, [token | element]} | outer]

  defp print({:plain, [], element}), do: Enum.reverse(element)

  defp print({:map, elements, element}) do
    pairs = Enum.map([Enum.reverse(element) | elements], &IO.iodata_to_binary/1)
    ["\#{", pairs |> Enum.sort() |> Enum.intersperse(",")]
  end

  @doc "The text as it has to be when `releases/FROM/` is called `releases/TO/`."
  @spec rename(binary(), String.t(), String.t()) :: binary()
  def rename(text, from, to) do
    from = "releases/#{from}/"
    to = "releases/#{to}/"

    # `mix release` prints the binaries of sys.config as lists of bytes.
    text |> String.replace(from, to) |> String.replace(as_bytes(from), as_bytes(to))
  end

  defp as_bytes(text), do: text |> :binary.bin_to_list() |> Enum.join(",")

  @doc "What this node was booted with, its configuration providers included."
  @spec boot() :: [{atom(), keyword()}]
  def boot do
    with path when path != nil <- System.get_env("RELEASE_SYS_CONFIG"),
         {:ok, config} <- consult(path <> ".config") do
      config
    else
      _none -> []
    end
  end

  @doc """
  The configuration of the release below `root`, with all of its providers run, as its boot would. Done before anything
  is changed: a file that cannot be parsed or a `runtime.exs` that raises is an error and nothing more.
  """
  @spec evaluate(Path.t(), Path.t()) ::
          {:ok, [{atom(), keyword()}]} | {:error, {:config_failed, term()}}
  def evaluate(path, root) do
    with {:ok, config} <- consult(path) do
      {provider, elixir} = Keyword.pop(config[:elixir] || [], :config_provider_init)
      run(provider, Keyword.put(config, :elixir, elixir), root)
    end
  end

  defp consult(path) do
    case :file.consult(path) do
      # Names of further files may stand among the pairs; `mix release` writes none.
      {:ok, [config]} when is_list(config) ->
        {:ok, Enum.filter(config, &is_tuple/1)}

      {:ok, _other} ->
        {:error, {:config_failed, {:malformed, path}}}

      {:error, reason} ->
        {:error, {:config_failed, {path, :file.format_error(reason) |> to_string()}}}
    end
  end

  defp run(nil, config, _root), do: {:ok, config}

  # In a process of its own: it is somebody's code, and it may take its time.
  defp run(%{providers: providers}, config, root) do
    {pid, monitor} =
      spawn_monitor(fn ->
        exit({:evaluated, Enum.reduce(providers, config, &load(&1, &2, root))})
      end)

    receive do
      {:DOWN, ^monitor, :process, ^pid, {:evaluated, config}} -> {:ok, config}
      {:DOWN, ^monitor, :process, ^pid, reason} -> {:error, {:config_failed, reason}}
    after
      @evaluate_timeout ->
        Process.exit(pid, :kill)
        Process.demonitor(monitor, [:flush])
        {:error, {:config_failed, :timeout}}
    end
  end

  defp load({provider, state}, config, root), do: provider.load(config, at_root(state, root))

  # A release names its files relative to the variable that its start script sets. Ours may still say another one.
  defp at_root({:system, "RELEASE_ROOT", path}, root), do: root <> path

  defp at_root(tuple, root) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> at_root(root) |> List.to_tuple()

  defp at_root([head | tail], root), do: [at_root(head, root) | at_root(tail, root)]
  defp at_root(other, _root), do: other
end
