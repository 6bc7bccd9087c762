defmodule BeamDeploy.Test.SampleRelease do
  @moduledoc false
  # Tarballs of test/fixtures/sample, built by `mix release`: each combination once, and again only when what it is made
  # of has changed.

  @fixture Path.expand("../fixtures/sample", __DIR__)
  @root Path.expand("../..", __DIR__)

  @doc """
  The path of a tarball. `variant` is what is wrong with the release, see the fixture's mix.exs; `app: :other` gives
  the application another name.
  """
  def tarball(version, variant \\ :good, options \\ []) do
    app = Keyword.get(options, :app, :sample)
    path = Path.join(directory(), "#{app}-#{version}-#{variant}.tar.gz")

    # One build at a time: they share a build directory.
    :global.trans({__MODULE__, self()}, fn ->
      unless File.exists?(path), do: build(path, app, version, variant)
    end)

    path
  end

  @doc "The root of an unpacked release."
  def unpacked(version, variant \\ :good) do
    tarball = tarball(version, variant)
    root = Path.rootname(tarball, ".tar.gz")

    :global.trans({__MODULE__, self()}, fn ->
      unless File.exists?(root) do
        partial = root <> ".partial"
        File.rm_rf!(partial)
        :ok = :erl_tar.extract(tarball, [:compressed, cwd: String.to_charlist(partial)])
        File.rename!(partial, root)
      end
    end)

    root
  end

  defp build(path, app, version, variant) do
    # Mix does not notice that a version, a name or applications out of the environment have changed.
    more = if System.get_env("SAMPLE_APPLICATIONS"), do: "-large", else: ""
    build = Path.join(@root, "_build/sample/#{app}-#{version}#{more}")

    environment = [
      {"MIX_ENV", "prod"},
      {"MIX_BUILD_PATH", build},
      {"SAMPLE_APP", "#{app}"},
      {"SAMPLE_VERSION", version},
      {"SAMPLE_VARIANT", "#{variant}"}
    ]

    case System.cmd("mix", ["release", "--overwrite", "--quiet"],
           cd: @fixture,
           env: environment,
           stderr_to_stdout: true
         ) do
      {_output, 0} -> File.cp!(Path.join(build, "#{app}-#{version}.tar.gz"), path)
      {output, status} -> raise "mix release of the fixture ended with #{status}:\n#{output}"
    end
  end

  # Named by all that goes into a release, so that an old tarball is never taken for a new one.
  defp directory do
    with nil <- :persistent_term.get(__MODULE__, nil) do
      directory = Path.join(@root, "_build/sample_releases/#{digest()}")
      File.mkdir_p!(directory)
      :persistent_term.put(__MODULE__, directory)
      directory
    end
  end

  defp digest do
    [
      "lib/**/*.ex",
      "native/**/src/**/*.rs",
      "priv/*.sh",
      "mix.exs",
      "test/fixtures/sample/mix.exs",
      "test/fixtures/sample/{lib,config,rel}/**/*"
    ]
    |> Enum.flat_map(&Path.wildcard(Path.join(@root, &1)))
    |> Enum.reject(&File.dir?/1)
    |> Enum.reduce(:crypto.hash_init(:sha256), &:crypto.hash_update(&2, File.read!(&1)))
    |> :crypto.hash_final()
    |> Base.encode16(case: :lower)
    |> binary_part(0, 16)
  end
end
