defmodule BeamDeploy.Test.LogFile do
  @moduledoc false
  # What a release that a test runs has printed so far.

  alias BeamDeploy.Test.Wait

  @spec log(%{log: Path.t()}) :: String.t()
  def log(%{log: path}) do
    case File.read(path) do
      {:ok, text} -> text
      {:error, :enoent} -> ""
    end
  end

  @doc "A line is written some time after what it tells of, by another process than the one that logs it."
  @spec assert_logged(%{log: Path.t()}, String.t() | Regex.t()) :: :ok
  def assert_logged(release, pattern) do
    Wait.until(fn -> log(release) =~ pattern end,
      otherwise: fn -> "#{inspect(pattern)} is not in the log:\n" <> log(release) end
    )
  end
end
