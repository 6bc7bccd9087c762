Code.require_file("precompiled.exs", __DIR__)

defmodule Mix.Tasks.Compile.BeamDeployNative do
  @moduledoc false
  # Puts the NIF library into priv/native: the precompiled one for this machine where the package names its checksum, else
  # what cargo builds of the crate. It lives beside mix.exs rather than in lib/ because it has to exist before lib/ is
  # compiled.

  use Mix.Task.Compiler

  alias BeamDeploy.MixProject.Precompiled

  @root Path.expand("..", __DIR__)
  @crate Path.join(@root, "native/beam_deploy_nif")
  @library Path.join(@root, "priv/native/beam_deploy_nif.so")
  @minimum_rust Version.parse!("1.91.0")

  @impl true
  def run(args) do
    if "--force" in args or Mix.Utils.stale?(sources(), [@library]),
      do: provide(),
      else: {:noop, []}
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

  defp provide do
    config = Mix.Project.config()

    with {:ok, offer} <- Precompiled.offer(@root, config[:version], config[:source_url]),
         {:ok, library} <- Precompiled.fetch(offer) do
      install(library)
      Mix.shell().info("Downloaded the native library of beam_deploy, #{offer.name}")
      {:ok, []}
    else
      {:build, why} ->
        if why, do: Mix.shell().info("beam_deploy: no precompiled library: #{why}.")
        build()

      {:refused, message} ->
        fail(message)
    end
  end

  defp build do
    with {:ok, cargo} <- find_cargo(),
         :ok <- check_version(cargo),
         :ok <- compile(cargo) do
      install(File.read!(Path.join(target_dir(), "release/#{built_name()}")))
      {:ok, []}
    else
      {:error, message} -> fail(message)
    end
  end

  defp fail(message) do
    Mix.shell().error(message)
    {:error, []}
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
  defp install(library) do
    temporary = "#{@library}.#{System.pid()}"
    File.mkdir_p!(Path.dirname(@library))
    File.write!(temporary, library)
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
