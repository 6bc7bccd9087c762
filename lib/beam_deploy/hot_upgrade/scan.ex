defmodule BeamDeploy.HotUpgrade.Scan do
  @moduledoc false
  # Responsible for: what a release tarball holds, read in one pass without extracting it.
  # Not for: what that means for an upgrade (Plan).

  alias BeamDeploy.HotUpgrade.Beam
  alias BeamDeploy.Native
  alias BeamDeploy.Release.Archive

  @typedoc "`facts` and `bytes` are there for modules that differ from the known ones."
  @type file :: %{
          required(:path) => Path.t(),
          required(:name) => String.t(),
          required(:md5) => binary(),
          required(:bare_md5) => binary(),
          optional(:facts) => map(),
          optional(:bytes) => binary()
        }

  @type t :: %{
          sha256: binary(),
          modules: [file()],
          texts: %{Path.t() => binary()},
          files: %{Path.t() => md5 :: binary()},
          runtimes: [String.t()]
        }

  @doc "Compares with `known`, from names to MD5s. `:all` compares with nothing and keeps no contents."
  @spec read(Path.t(), %{String.t() => binary()} | :all) :: {:ok, t()} | {:error, term()}
  def read(path, known) do
    with :ok <- Archive.verify(path),
         {:ok, scanned} <- scan(path, known, Beam.native?()) do
      {:ok, %{scanned | texts: Map.new(scanned.texts), files: Map.new(scanned.files)}}
    end
  end

  defp scan(path, :all, true), do: native(path, [], false)
  defp scan(path, known, true), do: native(path, Map.to_list(known), true)

  # The VM counts other chunks than the native code: let the native code read, and the VM's own library count.
  defp scan(path, known, false) do
    with {:ok, scanned} <- native(path, [], true) do
      {:ok,
       Map.update!(scanned, :modules, fn modules -> Enum.map(modules, &recount(&1, known)) end)}
    end
  end

  defp recount(file, known) do
    {:ok, {_module, md5}} = :beam_lib.md5(file.bytes)
    file = %{file | md5: md5, bare_md5: md5}

    if known == :all or known[file.name] == md5, do: Map.drop(file, [:facts, :bytes]), else: file
  end

  defp native(path, known, differences?) do
    Native.release_scan(path, Beam.significant(), known, differences?, Archive.default_limits())
  end
end
