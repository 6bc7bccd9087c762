defmodule BeamDeploy.HotUpgrade.CodePath do
  @moduledoc false
  # Responsible for: where modules and `priv` directories are looked for, switched as a whole.
  # Not for: what is loaded already.

  @type t :: [charlist()]

  @doc """
  The path with the applications at their new places, by name, and the new directory of consolidated protocols.
  Applications that were not there are added at the end.
  """
  @spec switched(t(), %{String.t() => Path.t()}, Path.t() | nil) :: t()
  def switched(path, libraries, consolidated) do
    {path, left} =
      Enum.map_reduce(path, libraries, fn entry, left ->
        text = List.to_string(entry)

        case kind(text) do
          {:library, app} when is_map_key(libraries, app) ->
            {ebin(libraries[app]), Map.delete(left, app)}

          :consolidated when consolidated != nil ->
            {String.to_charlist(consolidated), left}

          _other ->
            {entry, left}
        end
      end)

    path ++ (left |> Enum.sort() |> Enum.map(fn {_app, library} -> ebin(library) end))
  end

  @doc "Sets the path, without directories that are not there: for one of them the code server would refuse it as a whole."
  @spec set(t()) :: :ok | {:error, {:code_path, term()}}
  def set(path) do
    # Past the file server, of which processes that are not suspended make use as well: everything waits for this.
    case path |> Enum.filter(&File.dir?(&1, [:raw])) |> :code.set_path() do
      true -> :ok
      {:error, reason} -> {:error, {:code_path, reason}}
    end
  end

  defp ebin(library), do: library |> Path.join("ebin") |> String.to_charlist()

  defp kind(text) do
    case text |> Path.split() |> Enum.reverse() do
      # As the code server takes a name from a directory: up to the first hyphen.
      ["ebin", library | _above] -> {:library, library |> String.split("-", parts: 2) |> hd()}
      ["consolidated" | _above] -> :consolidated
      _other -> :other
    end
  end
end
