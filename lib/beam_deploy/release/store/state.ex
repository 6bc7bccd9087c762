defmodule BeamDeploy.Release.Store.State do
  @moduledoc false
  # Responsible for: what the store remembers, as pure data, and its form on disk.
  # Not for: files.
  #
  # On disk: a line that names the format, the SHA-256 of the rest in hexadecimal on a line, an external term. Only
  # atoms of this module are in it: `:safe` decoding refuses any that no loaded code has mentioned yet.

  alias BeamDeploy.Release

  @enforce_keys [:base]
  defstruct [:base, current: :base, previous: nil, releases: [], history: []]

  @type base_id :: {root :: Path.t(), version :: String.t(), digest :: String.t()}
  @type key :: :base | {version :: String.t(), sha256 :: String.t(), directory :: String.t()}
  @type t :: %__MODULE__{
          base: base_id(),
          current: key(),
          previous: key() | nil,
          releases: [key()],
          history: [tuple()]
        }

  @header "beam_deploy store 1\n"
  @kinds [:blue_green, :hot, :rollback, :boot]
  @longest_history 100
  @longest_reason 2_000

  @spec new(base_id()) :: t()
  def new(base_id), do: %__MODULE__{base: base_id}

  @doc "After a cold deploy nothing of what was staged for the old base is served again."
  @spec rebase(t(), base_id()) :: t()
  def rebase(state, {_root, version, _digest} = base_id) do
    %{new(base_id) | history: state.history}
    |> record(%{kind: :boot, from: id(state.current, state), to: {version, nil}, outcome: :ok})
  end

  @doc """
  Makes a release the current one. The previous one is what served until then (`from`): that is another than what was
  current when the parent had to boot a stand-in.
  """
  @spec promote(t(), key(), Release.id() | nil) :: t()
  def promote(state, key, from \\ nil)
  def promote(%{current: key} = state, key, _from), do: state

  def promote(state, key, from) do
    releases = if key == :base, do: state.releases, else: [key | List.delete(state.releases, key)]
    served = Enum.find([:base | state.releases], state.current, &(id(&1, state) == from))
    previous = if served == key, do: state.current, else: served
    %{state | current: key, previous: previous, releases: releases}
  end

  @spec record(t(), map()) :: t()
  def record(state, %{kind: kind, outcome: outcome} = entry) when kind in @kinds do
    at = entry |> Map.get_lazy(:at, &DateTime.utc_now/0) |> DateTime.to_unix(:millisecond)
    row = {at, kind, id(entry[:from], state), id(entry[:to], state), flatten(outcome)}
    %{state | history: Enum.take([row | state.history], @longest_history)}
  end

  @spec to_entry(tuple()) :: map()
  def to_entry({at, kind, from, to, outcome}) do
    at = DateTime.from_unix!(at, :millisecond)
    %{at: at, kind: kind, from: from, to: to, outcome: outcome}
  end

  @doc "Without the releases for which `there?` is false. A lost current one is replaced by what served before it."
  @spec keep(t(), (key() -> boolean())) :: t()
  def keep(state, there?) do
    releases = Enum.filter(state.releases, there?)
    kept? = &(&1 == :base or &1 in releases)
    previous = if kept?.(state.previous), do: state.previous

    if kept?.(state.current) do
      %{state | releases: releases, previous: previous}
    else
      %{state | releases: releases, current: previous || :base, previous: nil}
    end
  end

  @doc "Without those older than the `keep` newest."
  @spec prune(t(), non_neg_integer(), (key() -> boolean())) :: t()
  def prune(state, keep, spared?) do
    {newest, older} = Enum.split(state.releases, keep)
    needed = Enum.filter(older, &(&1 in [state.current, state.previous] or spared?.(&1)))
    %{state | releases: newest ++ needed}
  end

  @spec encode(t()) :: binary()
  def encode(state), do: state |> Map.from_struct() |> seal()

  @spec decode(binary()) :: {:ok, t()} | {:error, :format | :checksum | :contents}
  def decode(bytes) do
    case unseal(bytes) do
      {:ok, %{base: _, current: _, previous: _, releases: _, history: _} = fields} ->
        {:ok, struct!(__MODULE__, fields)}

      {:ok, _other} ->
        {:error, :contents}

      {:error, why} ->
        {:error, why}
    end
  end

  @doc "A term under a checksum."
  @spec seal(term()) :: binary()
  def seal(term) do
    payload = :erlang.term_to_binary(term)
    @header <> digest(payload) <> "\n" <> payload
  end

  @spec unseal(binary()) :: {:ok, term()} | {:error, :format | :checksum | :contents}
  def unseal(@header <> <<digest::binary-size(64), ?\n, payload::binary>>) do
    if digest(payload) == digest, do: to_term(payload), else: {:error, :checksum}
  end

  def unseal(_bytes), do: {:error, :format}

  defp to_term(payload) do
    {:ok, :erlang.binary_to_term(payload, [:safe])}
  rescue
    ArgumentError -> {:error, :contents}
  end

  defp digest(payload), do: :sha256 |> :crypto.hash(payload) |> Base.encode16(case: :lower)

  defp id(nil, _state), do: nil
  defp id(:base, %{base: {_root, version, _digest}}), do: {version, nil}
  defp id({version, sha256, _directory}, _state), do: {version, sha256}
  defp id({version, sha256}, _state), do: {version, sha256}
  defp id(%Release{} = release, _state), do: Release.id(release)

  # Reasons are open terms, with atoms that a later VM may not know.
  defp flatten(:ok), do: :ok

  defp flatten({:error, text}) when is_binary(text),
    do: {:error, String.slice(text, 0, @longest_reason)}

  defp flatten({:error, reason}),
    do: flatten({:error, inspect(reason, limit: 50, printable_limit: 500)})
end
