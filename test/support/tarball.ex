defmodule BeamDeploy.Test.Tarball do
  @moduledoc false
  # Tarballs made byte by byte, so that they can hold what no tool would write.

  @doc "A ustar entry. `type` is the type flag; `size` may lie."
  def entry(name, contents \\ "", options \\ []) do
    type = Keyword.get(options, :type, ?0)
    size = Keyword.get(options, :size, byte_size(contents))
    mode = Keyword.get(options, :mode, 0o644)
    link = Keyword.get(options, :link, "")

    header =
      IO.iodata_to_binary([
        pad(name, 100),
        octal(mode, 8),
        octal(0, 8),
        octal(0, 8),
        octal(size, 12),
        octal(0, 12),
        "        ",
        type,
        pad(link, 100),
        "ustar\0",
        "00",
        pad("root", 32),
        pad("root", 32),
        octal(0, 8),
        octal(0, 8),
        pad("", 155),
        pad("", 12)
      ])

    sum = for <<byte <- header>>, reduce: 0, do: (total -> total + byte)
    <<before::binary-size(148), _sum::binary-size(8), rest::binary>> = header
    [before, String.pad_leading(Integer.to_string(sum, 8), 6, "0"), "\0 ", rest, blocks(contents)]
  end

  def directory(name, mode \\ 0o755), do: entry(name, "", type: ?5, mode: mode)
  def symlink(name, target), do: entry(name, "", type: ?2, link: target)
  def hard_link(name, target), do: entry(name, "", type: ?1, link: target)

  def pax(pairs) do
    records = Enum.map_join(pairs, fn {key, value} -> pax_record("#{key}=#{value}\n") end)
    entry("PaxHeaders/x", records, type: ?x)
  end

  def gnu_long_name(name), do: entry("././@LongLink", name <> "\0", type: ?L)

  @doc "The entries and the two zero blocks that end an archive."
  def tar(entries), do: IO.iodata_to_binary([entries, :binary.copy(<<0>>, 1024)])

  def write!(path, entries) do
    File.write!(path, :zlib.gzip(tar(entries)))
    path
  end

  @doc "The entries of a release that BeamDeploy accepts. `:files` adds to them."
  def release(options \\ []) do
    name = Keyword.get(options, :name, "my_app")
    version = Keyword.get(options, :version, "0.2.0")
    erts = Keyword.get_lazy(options, :erts, fn -> "#{:erlang.system_info(:version)}" end)
    applications = Keyword.get(options, :applications, [name, "beam_deploy", "kernel", "stdlib"])

    for {path, contents} <- Keyword.get(options, :files, []) do
      entry(path, contents)
    end ++
      [
        directory("bin"),
        entry("bin/#{name}", "#!/bin/sh\n", mode: 0o755),
        entry("lib/#{name}-#{version}/ebin/#{name}.app", "{application, #{name}, []}."),
        entry("releases/#{version}/#{name}.rel", rel(name, version, erts, applications)),
        entry("releases/#{version}/start.boot", "boot #{version}"),
        entry("releases/start_erl.data", "#{erts} #{version}")
      ]
  end

  @doc "The same release on disk."
  def release_on_disk!(root, options \\ []) do
    :ok = :erl_tar.extract({:binary, tar(release(options))}, cwd: String.to_charlist(root))
    root
  end

  def rel(name, version, erts, applications) do
    listed = Enum.map_join(applications, ",\n  ", &~s({#{&1},"1.0.0",permanent}))

    """
    %% coding: utf-8
    {release,{"#{name}","#{version}"},
             {erts,"#{erts}"},
             [#{listed}]}.
    """
  end

  @doc "A deterministic generator: a state of `:rand` from a seed."
  def seed(number), do: :rand.seed_s(:exsss, number)

  defp pax_record(text) do
    length = Enum.find(1..20_000, &(byte_size("#{&1} ") + byte_size(text) == &1))
    "#{length} #{text}"
  end

  defp pad(text, width) when byte_size(text) <= width,
    do: text <> :binary.copy(<<0>>, width - byte_size(text))

  defp octal(number, width),
    do: String.pad_leading(Integer.to_string(number, 8), width - 1, "0") <> "\0"

  defp blocks(contents) do
    [contents, :binary.copy(<<0>>, rem(512 - rem(byte_size(contents), 512), 512))]
  end
end
