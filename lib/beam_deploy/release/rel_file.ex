defmodule BeamDeploy.Release.RelFile do
  @moduledoc false
  # Responsible for: reading a `.rel` file, the Erlang term that names a release and its applications.
  # Not for: finding the file.
  #
  # Not `:file.consult/1` or `:erl_scan`: they make an atom of every word in a file that somebody sent us, and
  # atoms are never given back. Here atoms and strings both come out as binaries.

  @enforce_keys [:name, :version, :erts_version, :applications]
  defstruct [:name, :version, :erts_version, :applications]

  @type t :: %__MODULE__{
          name: String.t(),
          version: String.t(),
          erts_version: String.t(),
          applications: %{String.t() => String.t()}
        }

  @deepest 16

  @spec parse(binary()) :: {:ok, t()} | :error
  def parse(text) do
    with {:ok, tokens} <- tokens(text, []),
         {:ok, {:tuple, release}, [:.]} <- term(tokens, 0) do
      release(release)
    else
      _other -> :error
    end
  end

  defp release([
         {:word, "release"},
         {:tuple, [{:string, name}, {:string, version}]},
         {:tuple, [{:word, "erts"}, {:string, erts_version}]},
         {:list, applications} | _more
       ]) do
    with {:ok, applications} <- applications(applications, %{}) do
      {:ok,
       %__MODULE__{
         name: name,
         version: version,
         erts_version: erts_version,
         applications: applications
       }}
    end
  end

  defp release(_other), do: :error

  defp applications([], found), do: {:ok, found}

  defp applications([{:tuple, [{:word, name}, {:string, version} | _type]} | rest], found),
    do: applications(rest, Map.put(found, name, version))

  defp applications(_other, _found), do: :error

  # --- terms

  defp term([:"{" | rest], depth) when depth < @deepest, do: sequence(rest, :tuple, :"}", depth)
  defp term([:"[" | rest], depth) when depth < @deepest, do: sequence(rest, :list, :"]", depth)
  defp term([{_kind, _text} = token | rest], _depth), do: {:ok, token, rest}
  defp term(_tokens, _depth), do: :error

  defp sequence([close | rest], kind, close, _depth), do: {:ok, {kind, []}, rest}
  defp sequence(tokens, kind, close, depth), do: elements(tokens, kind, close, depth, [])

  defp elements(tokens, kind, close, depth, found) do
    case term(tokens, depth + 1) do
      {:ok, element, [:"," | rest]} -> elements(rest, kind, close, depth, [element | found])
      {:ok, element, [^close | rest]} -> {:ok, {kind, Enum.reverse([element | found])}, rest}
      _other -> :error
    end
  end

  # --- words

  defp tokens("", found), do: {:ok, Enum.reverse(found)}
  defp tokens("%" <> rest, found), do: rest |> skip_line() |> tokens(found)
  defp tokens(<<c, rest::binary>>, found) when c in ~c" \t\r\n", do: tokens(rest, found)
  defp tokens("{" <> rest, found), do: tokens(rest, [:"{" | found])
  defp tokens("}" <> rest, found), do: tokens(rest, [:"}" | found])
  defp tokens("[" <> rest, found), do: tokens(rest, [:"[" | found])
  defp tokens("]" <> rest, found), do: tokens(rest, [:"]" | found])
  defp tokens("," <> rest, found), do: tokens(rest, [:"," | found])
  defp tokens("." <> rest, found), do: tokens(rest, [:. | found])
  defp tokens("\"" <> rest, found), do: quoted(rest, ?", :string, found, [])
  defp tokens("'" <> rest, found), do: quoted(rest, ?', :word, found, [])
  defp tokens(text, found), do: word(text, found, [])

  defp quoted(<<quote, rest::binary>>, quote, kind, found, text),
    do: tokens(rest, [{kind, to_text(text)} | found])

  defp quoted(<<?\\, c, rest::binary>>, quote, kind, found, text) when c in [?\\, ?", ?'],
    do: quoted(rest, quote, kind, found, [c | text])

  defp quoted(<<c, rest::binary>>, quote, kind, found, text) when c != ?\\,
    do: quoted(rest, quote, kind, found, [c | text])

  defp quoted(_text, _quote, _kind, _found, _read), do: :error

  defp word(<<c, rest::binary>>, found, text)
       when c in ?a..?z or c in ?A..?Z or c in ?0..?9 or c in [?_, ?@],
       do: word(rest, found, [c | text])

  defp word(_text, _found, []), do: :error
  defp word(rest, found, text), do: tokens(rest, [{:word, to_text(text)} | found])

  defp to_text(reversed), do: reversed |> Enum.reverse() |> IO.iodata_to_binary()

  defp skip_line(text) do
    case :binary.split(text, "\n") do
      [_comment, rest] -> rest
      [_comment] -> ""
    end
  end
end
