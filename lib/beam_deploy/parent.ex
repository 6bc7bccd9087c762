defmodule BeamDeploy.Parent do
  @moduledoc false
  # Responsible for: what the parent has to know of its surroundings before it can start: its own release, the store,
  # the places for its socket and its peers' files.
  # Not for: anything that runs.

  alias BeamDeploy.{Error, Options, Release}
  alias BeamDeploy.Release.Store

  require Logger

  # sun_path of Linux, with its final zero; other systems have a few bytes less.
  @longest_socket_path 100

  @type t :: %{
          base: Release.t(),
          store: Store.t(),
          run_dir: Path.t(),
          socket: Path.t(),
          listeners: :steered | :overlap
        }

  @doc "Prepares the parent's surroundings. Raises `ArgumentError` for a node on which BeamDeploy cannot run."
  @spec prepare(Options.t()) :: {:ok, t()} | {:error, term()}
  def prepare(%Options{} = options) do
    check_distribution!()
    environment = System.get_env()
    {kind, dir} = Store.default_dir(environment, options.otp_app, dir: options.dir)
    warn_if_volatile(kind, dir)

    with {:ok, base} <- read_base(environment),
         :ok <- Release.check_app(base, options.otp_app),
         {:ok, store} <- Store.open(dir, base),
         {:ok, run_dir} <- make_run_dir(dir) do
      {:ok,
       %{
         base: base,
         store: store,
         run_dir: run_dir,
         socket: socket_path(run_dir),
         listeners: Application.get_env(:beam_deploy, :listeners, :steered)
       }}
    else
      {:error, reason} ->
        Logger.error("beam_deploy: the parent does not start: #{Error.sentence(reason)}")
        {:error, reason}
    end
  end

  @doc "Gives back what `prepare/1` took. A parent that is killed leaves at most one link, which its next start replaces."
  @spec release(t()) :: :ok
  def release(%{socket: socket, run_dir: run_dir, store: store}) do
    link = Path.dirname(socket)
    if link != run_dir, do: _ = File.rm(link)
    Store.close(store)
  end

  defp check_distribution! do
    unless Node.alive?() do
      raise ArgumentError,
            "BeamDeploy is enabled, but this node has no name to reach its peers with. Start the release with " <>
              "RELEASE_DISTRIBUTION=sname (or name) and, if need be, RELEASE_NODE; or set BEAM_DEPLOY=0."
    end
  end

  defp read_base(environment) do
    case environment do
      %{"RELEASE_ROOT" => root, "RELEASE_VSN" => version} ->
        Release.read(root, version: version)

      _no_release ->
        raise ArgumentError,
              "BeamDeploy is enabled, but this is no release (RELEASE_ROOT is not set): peers can only be booted " <>
                "from what `mix release` makes. Start it with bin/NAME start, or set BEAM_DEPLOY=0."
    end
  end

  defp warn_if_volatile(:ok, _dir), do: :ok

  defp warn_if_volatile(:volatile, dir) do
    Logger.warning(
      "beam_deploy: deployed releases are kept in #{dir}, which does not survive a reboot; set BEAM_DEPLOY_DIR or :dir"
    )
  end

  # Nothing in it outlives the parent, so what an earlier one left there is of no use.
  defp make_run_dir(dir) do
    run_dir = Path.join(dir, "run")

    with {:ok, _removed} <- File.rm_rf(run_dir),
         :ok <- File.mkdir(run_dir),
         :ok <- File.chmod(run_dir, 0o700) do
      {:ok, run_dir}
    else
      {:error, posix, _path} -> {:error, {:store_failed, run_dir, posix}}
      {:error, posix} -> {:error, {:store_failed, run_dir, posix}}
    end
  end

  # A directory of the store may lie too deep for the path of a socket. A link in a place that is short enough leads
  # there: whoever follows it still has to get past the mode of the directory.
  defp socket_path(run_dir) do
    path = Path.join(run_dir, "parent.sock")
    if byte_size(path) <= @longest_socket_path, do: path, else: abbreviate(run_dir)
  end

  defp abbreviate(run_dir) do
    digest =
      :sha256 |> :crypto.hash(run_dir) |> Base.url_encode64(padding: false) |> binary_part(0, 16)

    link = Path.join(System.tmp_dir!(), "beam_deploy-" <> digest)
    _ = File.rm(link)
    :ok = File.ln_s(run_dir, link)
    Path.join(link, "parent.sock")
  end
end
