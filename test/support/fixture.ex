defmodule BeamDeploy.Test.Fixture do
  @moduledoc false
  # The projects under test/fixtures, built by `mix release`: each tarball once, and again only when what it is made of
  # has changed.

  @root Path.expand("../..", __DIR__)

  @doc "Where the tarballs of a fixture lie; named by all that goes into one, so that an old one is never taken for a new one."
  def directory(name) do
    key = {__MODULE__, name}

    with nil <- :persistent_term.get(key, nil) do
      directory = Path.join(@root, "_build/#{name}_releases/#{digest(name)}")
      File.mkdir_p!(directory)
      :persistent_term.put(key, directory)
      directory
    end
  end

  @doc "A build directory for the fixture's project."
  def build_path(directory), do: Path.join([@root, "_build", directory])

  @doc """
  The path, which `make` makes if it is not there: one thing of a fixture at a time, since its builds share directories.
  What is there is not waited for.
  """
  def once(path, make) do
    unless File.exists?(path) do
      :global.trans({{__MODULE__, Path.dirname(path)}, self()}, fn ->
        unless File.exists?(path), do: make.()
      end)
    end

    path
  end

  @doc "Builds the release of that version, and copies its tarball, `APP-VERSION.tar.gz`, to `path`."
  def build(name, app, version, build, environment, path) do
    case System.cmd("mix", ["release", "--overwrite", "--quiet"],
           cd: Path.join(@root, "test/fixtures/#{name}"),
           env: [{"MIX_ENV", "prod"}, {"MIX_BUILD_PATH", build} | environment],
           stderr_to_stdout: true
         ) do
      {_output, 0} ->
        # Never seen half written.
        File.cp!(Path.join(build, "#{app}-#{version}.tar.gz"), path <> ".partial")
        File.rename!(path <> ".partial", path)

      {output, status} ->
        raise "mix release of the fixture ended with #{status}:\n#{output}"
    end
  end

  defp digest(name) do
    [
      "lib/**/*.ex",
      "native/**/src/**/*.rs",
      "priv/*.sh",
      "mix.exs",
      "test/support/plug/*.ex",
      "test/fixtures/#{name}/mix.exs",
      "test/fixtures/#{name}/{lib,config,rel}/**/*"
    ]
    |> Enum.flat_map(&Path.wildcard(Path.join(@root, &1)))
    |> Enum.reject(&File.dir?/1)
    |> Enum.reduce(:crypto.hash_init(:sha256), &:crypto.hash_update(&2, File.read!(&1)))
    |> :crypto.hash_final()
    |> Base.encode16(case: :lower)
    |> binary_part(0, 16)
  end
end
