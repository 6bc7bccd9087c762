defmodule Mix.Tasks.Compile.BeamDeployNative do
  @moduledoc false
  # Builds the NIF crate with cargo and puts the library into priv/native. It lives beside mix.exs rather
  # than in lib/ because it has to exist before lib/ is compiled.

  use Mix.Task.Compiler

  @root Path.expand("..", __DIR__)
  @crate Path.join(@root, "native/beam_deploy_nif")
  @library Path.join(@root, "priv/native/beam_deploy_nif.so")
  @minimum_rust Version.parse!("1.91.0")

  @impl true
  def run(_args) do
    if Mix.Utils.stale?(sources(), [@library]), do: build(), else: {:noop, []}
  end

  @impl true
  def clean do
    File.rm(@library)
    :ok
  end

  defp sources do
    [Path.join(@crate, "Cargo.toml"), Path.join(@crate, "Cargo.lock")] ++
      Path.wildcard(Path.join(@crate, "src/**/*.rs"))
  end

  defp build do
    with {:ok, cargo} <- find_cargo(),
         :ok <- check_version(cargo),
         :ok <- compile(cargo) do
      install()
      {:ok, []}
    else
      {:error, message} ->
        Mix.shell().error(message)
        {:error, []}
    end
  end

  defp find_cargo do
    case System.find_executable("cargo") do
      nil -> {:error, missing("cargo was not found")}
      cargo -> {:ok, cargo}
    end
  end

  defp check_version(cargo) do
    with {output, 0} <- System.cmd(cargo, ["--version"], stderr_to_stdout: true),
         [_, found] <- Regex.run(~r/^cargo (\d+\.\d+\.\d+)/m, output),
         {:ok, version} <- Version.parse(found) do
      if Version.compare(version, @minimum_rust) == :lt,
        do: {:error, missing("Rust #{found} is too old")},
        else: :ok
    else
      _other -> {:error, missing("`cargo --version` does not answer")}
    end
  end

  defp missing(what) do
    """
    beam_deploy: #{what}, and its native library has to be built.
    Install Rust #{@minimum_rust} or later (https://rustup.rs), then run `mix compile` again.\
    """
  end

  defp compile(cargo) do
    Mix.shell().info("Compiling the native library of beam_deploy (cargo build --release)")

    arguments = ["build", "--release", "--locked", "--lib", "--target-dir", target_dir()]

    case System.cmd(cargo, arguments,
           cd: @crate,
           into: IO.stream(:stdio, :line),
           stderr_to_stdout: true
         ) do
      {_output, 0} ->
        :ok

      {_output, status} ->
        {:error, "beam_deploy: cargo build ended with status #{status}, see above."}
    end
  end

  # Renamed into place: a running VM keeps the file it has mapped.
  defp install do
    temporary = "#{@library}.#{System.pid()}"
    File.mkdir_p!(Path.dirname(@library))
    File.cp!(Path.join(target_dir(), "release/#{built_name()}"), temporary)
    File.rename!(temporary, @library)

    # A first build made priv/ after Mix looked for it.
    Mix.Project.build_structure()
  end

  defp target_dir, do: Path.join(@root, "_build/native")

  defp built_name do
    case :os.type() do
      {:unix, :darwin} -> "libbeam_deploy_nif.dylib"
      _other -> "libbeam_deploy_nif.so"
    end
  end
end
