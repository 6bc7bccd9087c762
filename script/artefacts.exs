# For the maintainer and the release workflow: names and packs precompiled libraries, and writes their checksums.
#
#     elixir script/artefacts.exs pack TARGET LIBRARY DIRECTORY
#     elixir script/artefacts.exs checksums DIRECTORY
#
# The second writes checksum.exs, which goes into the package; a target that is missing is an error.
root = Path.expand("..", __DIR__)
Code.require_file("native/precompiled.exs", root)

alias BeamDeploy.MixProject.Precompiled

fail = fn message ->
  IO.puts(:stderr, message)
  System.halt(1)
end

version =
  case Regex.run(~r/^  @version "(.+)"$/m, File.read!(Path.join(root, "mix.exs"))) do
    [_, version] -> version
    nil -> fail.("mix.exs names no @version")
  end

case System.argv() do
  ["pack", target, library, directory] ->
    unless target in Precompiled.targets(),
      do: fail.("no such target: #{target}; there are #{Enum.join(Precompiled.targets(), ", ")}")

    path = Path.join(directory, Precompiled.name(version, target))
    File.mkdir_p!(directory)
    File.write!(path, :zlib.gzip(File.read!(library)))
    IO.puts(path)

  ["checksums", directory] ->
    names = Enum.map(Precompiled.targets(), &Precompiled.name(version, &1))

    case Enum.reject(names, &File.regular?(Path.join(directory, &1))) do
      [] -> :ok
      missing -> fail.("not in #{directory}: #{Enum.join(missing, ", ")}")
    end

    lines =
      for name <- Enum.sort(names) do
        digest = :crypto.hash(:sha256, File.read!(Path.join(directory, name)))
        ~s(  "#{name}" => "sha256:#{Base.encode16(digest, case: :lower)}")
      end

    File.write!(Path.join(root, "checksum.exs"), "%{\n" <> Enum.join(lines, ",\n") <> "\n}\n")
    IO.puts("checksum.exs")

  _other ->
    fail.("usage: pack TARGET LIBRARY DIRECTORY | checksums DIRECTORY")
end
