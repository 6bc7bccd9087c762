defmodule BeamDeploy.Release.Platform do
  @moduledoc false
  # Responsible for: what the running VM was built for, what a release was, and whether they go together.
  # Not for: reading releases.

  alias BeamDeploy.{Native, Release}

  @type machine :: atom() | {:machine, non_neg_integer()}
  @type binary_facts :: %{machine: machine(), libc: :glibc | :musl | nil}
  @type t :: %{otp_release: String.t(), binary: binary_facts() | nil}

  @doc "The running VM. `binary` is nil where programs are not ELF files, and then nothing is asked of a release's."
  @spec running() :: t()
  def running do
    %{
      otp_release: List.to_string(:erlang.system_info(:otp_release)),
      binary: binary_facts("/proc/self/exe")
    }
  end

  @doc "The OTP release of an ERTS version, for every ERTS since OTP 19."
  @spec otp_release(String.t()) :: String.t() | nil
  def otp_release(erts_version) do
    case Integer.parse(erts_version) do
      {major, _rest} -> Integer.to_string(major + 12)
      :error -> nil
    end
  end

  @spec check(Release.t(), t()) :: :ok | {:error, {:incompatible_release, map()}}
  def check(release, running) do
    with :ok <- check_otp(release, running),
         :ok <- check_emulator(release, running) do
      check_libraries(release, running)
    end
  end

  defp check_otp(%Release{bundled_erts?: true}, _running), do: :ok

  defp check_otp(release, running) do
    case otp_release(release.erts_version) do
      same when same == running.otp_release -> :ok
      other -> incompatible(:otp_release, other, running.otp_release, nil)
    end
  end

  defp check_emulator(%Release{bundled_erts?: false}, _running), do: :ok

  defp check_emulator(release, running) do
    file = "erts-#{release.erts_version}/bin/beam.smp"
    check_binary(binary_facts(Path.join(release.root, file)), running.binary, file)
  end

  # Some applications ship a library for each of several platforms and pick one as they start.
  defp check_libraries(release, running) do
    release.root
    |> libraries()
    |> Enum.group_by(&application_directory/1)
    |> Enum.reduce_while(:ok, fn {_application, files}, :ok ->
      results = Enum.map(files, &check_library(release.root, &1, running))
      if :ok in results, do: {:cont, :ok}, else: {:halt, hd(results)}
    end)
  end

  defp check_library(root, file, running),
    do: check_binary(binary_facts(Path.join(root, file)), running.binary, file)

  defp application_directory(file), do: file |> Path.split() |> Enum.take(2)

  defp check_binary(found, running, _file) when is_nil(found) or is_nil(running), do: :ok

  defp check_binary(%{machine: found}, %{machine: running}, file) when found != running,
    do: incompatible(:cpu, found, running, file)

  defp check_binary(%{libc: found}, %{libc: running}, file)
       when found != running and found != nil and running != nil,
       do: incompatible(:libc, found, running, file)

  defp check_binary(_found, _running, _file), do: :ok

  defp incompatible(what, found, running, file) do
    details = %{what: what, release: found, running: running, file: file}
    {:error, {:incompatible_release, details}}
  end

  # A file that cannot be read tells nothing against the release: booting it will.
  defp binary_facts(path) do
    case Native.elf_facts(path) do
      {:ok, facts} -> facts
      {:error, _reason} -> nil
    end
  end

  defp libraries(root) do
    for application <- list(Path.join(root, "lib")),
        file <- walk(root, Path.join(["lib", application, "priv"])),
        Path.extname(file) == ".so",
        do: file
  end

  # Not `Path.wildcard/2`, which follows symlinks and so can be led in circles.
  defp walk(root, path) do
    case File.lstat(Path.join(root, path)) do
      {:ok, %File.Stat{type: :directory}} ->
        Enum.flat_map(list(Path.join(root, path)), &walk(root, Path.join(path, &1)))

      {:ok, %File.Stat{type: :regular}} ->
        [path]

      _other ->
        []
    end
  end

  defp list(path) do
    case File.ls(path) do
      {:ok, names} -> Enum.sort(names)
      {:error, _reason} -> []
    end
  end
end
