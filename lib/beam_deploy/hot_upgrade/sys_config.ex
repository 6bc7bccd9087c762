defmodule BeamDeploy.HotUpgrade.SysConfig do
  @moduledoc false
  # Responsible for: the places in a release's configuration that name the release's own version.
  # Not for: what is configured (Config).

  @doc "The text without the version in `releases/VERSION/`, so that two versions can be compared."
  @spec without_version(binary(), String.t()) :: binary()
  def without_version(text, version), do: rename(text, version, "VERSION")

  @doc "The text as it has to be when `releases/FROM/` is called `releases/TO/`."
  @spec rename(binary(), String.t(), String.t()) :: binary()
  def rename(text, from, to) do
    from = "releases/#{from}/"
    to = "releases/#{to}/"

    # `mix release` prints the binaries of sys.config as lists of bytes.
    text |> String.replace(from, to) |> String.replace(as_bytes(from), as_bytes(to))
  end

  defp as_bytes(text), do: text |> :binary.bin_to_list() |> Enum.join(",")
end
