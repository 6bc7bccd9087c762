defmodule BeamDeploy.BlueGreen.Probation do
  @moduledoc false
  # Responsible for: whether a release that has just taken over proves to be one that cannot serve. Pure but for the clock.
  # Not for: what is done about it.

  alias BeamDeploy.Release

  @enforce_keys [:previous, :until]
  defstruct [:previous, :until, crashes: 0]

  @type t :: %__MODULE__{
          # What served before, and is to serve again.
          previous: Release.t(),
          until: integer(),
          crashes: non_neg_integer()
        }

  # The first end may have been an accident.
  @tolerated 1

  @doc "Of a release that has just taken over from `previous`: until it has served for so long it has proved nothing."
  @spec new(Release.t(), pos_integer(), integer()) :: t()
  def new(%Release{} = previous, seconds, now \\ now()),
    do: %__MODULE__{previous: previous, until: now + seconds}

  @doc """
  Of `to`, which has just taken over from `from`, whose own probation is given. One that has ended by itself in it is
  nothing to go back to: what it replaced is.
  """
  @spec next(t() | nil, Release.t(), Release.t(), pos_integer(), integer()) :: t() | nil
  def next(probation, from, to, seconds, now \\ now()) do
    previous =
      case probation do
        %{crashes: crashes, until: until, previous: previous} when crashes > 0 and now <= until ->
          previous

        _proved_or_none ->
          from
      end

    if previous.root == to.root, do: nil, else: new(previous, seconds, now)
  end

  @doc "The release's peer has ended by itself, or has not come up again."
  @spec ended(t() | nil, integer()) :: t() | nil
  def ended(probation, now \\ now())
  def ended(nil, _now), do: nil
  def ended(%{until: until}, now) when now > until, do: nil
  def ended(probation, _now), do: %{probation | crashes: probation.crashes + 1}

  @doc "Whether it is to be rolled back. Not later than where the parent would give up."
  @spec failed?(t() | nil, non_neg_integer()) :: boolean()
  def failed?(nil, _max_restarts), do: false
  def failed?(%{crashes: crashes}, max_restarts), do: crashes > min(@tolerated, max_restarts)

  defp now, do: System.monotonic_time(:second)
end
