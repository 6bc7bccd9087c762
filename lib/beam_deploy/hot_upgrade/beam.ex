defmodule BeamDeploy.HotUpgrade.Beam do
  @moduledoc false
  # Responsible for: module versions as the VM tells them apart, the MD5 of a BEAM file's significant chunks.
  # Not for: which modules there are.

  alias BeamDeploy.Native

  @typedoc "`bare` leaves the chunk `Meta` out, which `mix release` of Elixir 1.14 strips."
  @type md5s :: {whole :: binary(), bare :: binary()}

  # What the native code is tried on before it is relied on: modules of every kind of chunk are among them.
  @samples 24

  @doc "Both digests of a file's contents."
  @spec md5s(binary()) :: {:ok, md5s()} | {:error, term()}
  def md5s(beam) do
    if native?() do
      Native.beam_md5s(beam, significant())
    else
      with {:ok, {_module, md5}} <- :beam_lib.md5(beam), do: {:ok, {md5, md5}}
    end
  end

  @doc "Every name that the code in a file's contents can use."
  @spec names(binary()) :: {:ok, [String.t()]} | {:error, term()}
  def names(beam), do: Native.beam_names(beam)

  @doc "The identifiers of the chunks that the VM takes the MD5 over, in its order."
  @spec significant() :: [String.t()]
  def significant do
    # Listed by beam_lib, left out by its md5/1 and by the loader.
    for id <- :beam_lib.significant_chunks() -- [~c"Line", ~c"Type"], do: List.to_string(id)
  end

  @doc """
  Whether the native digest is the VM's own, tried once on loaded modules. A later OTP may count chunks differently;
  `:beam_lib` is asked then.
  """
  @spec native?() :: boolean()
  def native? do
    case :persistent_term.get({__MODULE__, :native?}, nil) do
      nil ->
        native? = Enum.all?(samples(), &same_md5?/1)
        :persistent_term.put({__MODULE__, :native?}, native?)
        native?

      native? ->
        native?
    end
  end

  defp samples do
    :code.all_loaded()
    |> Enum.sort()
    |> Stream.filter(fn {_module, path} ->
      is_list(path) and :filename.extension(path) == ~c".beam"
    end)
    |> Stream.flat_map(fn {_module, path} ->
      case File.read(path) do
        {:ok, beam} -> [beam]
        {:error, _posix} -> []
      end
    end)
    |> Enum.take(@samples)
  end

  defp same_md5?(beam) do
    with {:ok, {_module, expected}} <- :beam_lib.md5(beam),
         {:ok, {^expected, _bare}} <- Native.beam_md5s(beam, significant()) do
      true
    else
      _differs -> false
    end
  end
end
