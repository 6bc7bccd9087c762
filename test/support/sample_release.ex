defmodule BeamDeploy.Test.SampleRelease do
  @moduledoc false
  # Tarballs of test/fixtures/sample, built by `mix release`: each combination once, and again only when what it is made
  # of has changed.

  alias BeamDeploy.Test.Fixture

  @doc """
  The path of a tarball. `variant` is what is wrong with the release, see the fixture's mix.exs; `app: :other` gives
  the application another name.
  """
  def tarball(version, variant \\ :good, options \\ []) do
    app = Keyword.get(options, :app, :sample)
    path = Path.join(Fixture.directory("sample"), "#{app}-#{version}-#{variant}.tar.gz")

    Fixture.once(path, fn -> build(path, app, version, variant) end)
  end

  @doc "The root of an unpacked release."
  def unpacked(version, variant \\ :good) do
    tarball = tarball(version, variant)
    root = Path.rootname(tarball, ".tar.gz")

    Fixture.once(root, fn ->
      partial = root <> ".partial"
      File.rm_rf!(partial)
      :ok = :erl_tar.extract(tarball, [:compressed, cwd: String.to_charlist(partial)])
      File.rename!(partial, root)
    end)
  end

  defp build(path, app, version, variant) do
    # Mix does not notice that a version, a name or applications out of the environment have changed.
    more =
      cond do
        System.get_env("SAMPLE_APPLICATIONS") -> "-large"
        variant == :tls -> "-tls"
        true -> ""
      end

    build = Fixture.build_path("sample/#{app}-#{version}#{more}")

    environment = [
      {"SAMPLE_APP", "#{app}"},
      {"SAMPLE_VERSION", version},
      {"SAMPLE_VARIANT", "#{variant}"}
    ]

    Fixture.build("sample", app, version, build, environment, path)
  end
end
