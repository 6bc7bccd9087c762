defmodule BeamDeploy.PeerNode.Preload do
  @moduledoc false
  # Responsible for: having modules loaded before somebody waits for them.
  # Not for: which ones are worth it.
  #
  # A VM in interactive mode loads each module when it is first called, one after another, through a search of the code
  # path. Compiling a module to machine code is nearly all of the cost, and that is done in the process which prepares
  # it: two processes on two cores halve the time.

  @batch 32
  @most_workers 4
  @startup {__MODULE__, :startup}

  @doc "Loads those modules of a file (a name a line) that this release has. A missing file means none."
  @spec run(Path.t()) :: :ok
  def run(list) do
    case File.read(list) do
      {:ok, names} -> names |> String.split("\n", trim: true) |> MapSet.new() |> load()
      {:error, :enoent} -> :ok
    end
  end

  @doc """
  Loads all modules of the release, as `bin/NAME start` does in embedded mode. To be called once the applications are
  started; what is loaded by then is what the next peer had better load first.
  """
  @spec load_all() :: :ok
  def load_all do
    :persistent_term.put(@startup, loaded())
    load(:all)
  end

  @doc "The modules that this peer needed to start its applications, a name a line; empty before it has."
  @spec startup_modules() :: binary()
  def startup_modules, do: :persistent_term.get(@startup, "")

  defp loaded do
    for {module, _file} <- :code.all_loaded(), into: "", do: Atom.to_string(module) <> "\n"
  end

  defp load(wanted) do
    wanted
    |> beams()
    |> Enum.reject(fn {module, _path} -> :erlang.module_loaded(module) end)
    |> deal(min(System.schedulers_online(), @most_workers))
    |> Enum.map(&spawn_monitor(fn -> load_in_batches(&1) end))
    |> Enum.each(fn {pid, monitor} ->
      receive do
        {:DOWN, ^monitor, :process, ^pid, _reason} -> :ok
      end
    end)
  end

  # The first directory of the code path that has a module wins, as in the code server.
  defp beams(wanted) do
    for directory <- :code.get_path(),
        {:ok, files} <- [:file.list_dir(directory)],
        file <- files,
        name = :filename.rootname(file, ~c".beam"),
        name != file,
        wanted == :all or MapSet.member?(wanted, List.to_string(name)),
        reduce: %{} do
      beams -> Map.put_new(beams, List.to_atom(name), :filename.join(directory, file))
    end
  end

  defp deal(beams, workers) do
    beams
    |> Enum.with_index()
    |> Enum.group_by(fn {_beam, index} -> rem(index, workers) end, fn {beam, _index} -> beam end)
    |> Map.values()
  end

  # Taking modules into service costs a synchronisation of all schedulers, whatever their number: hence in batches.
  defp load_in_batches(beams), do: beams |> Enum.chunk_every(@batch) |> Enum.each(&load_batch/1)

  # Whatever does not load here (a module with an on_load function, one that another process was quicker with) is
  # loaded when it is called, as it would have been anyway.
  defp load_batch(beams) do
    codes = for {module, path} <- beams, {:ok, bytes} <- [read(path)], do: {module, path, bytes}

    with {:ok, prepared} <- prepare(codes),
         do: if(not Enum.any?(codes, &loaded?/1), do: :code.finish_loading(prepared))
  end

  defp prepare(codes) do
    with {:error, refused} <- :code.prepare_loading(codes) do
      refused = Enum.map(refused, &elem(&1, 0))
      :code.prepare_loading(Enum.reject(codes, &(elem(&1, 0) in refused)))
    end
  end

  defp loaded?({module, _path, _bytes}), do: :erlang.module_loaded(module)

  defp read(path) do
    with {:ok, file} <- :file.open(path, [:read, :raw, :binary]) do
      try do
        with {:ok, size} <- :file.position(file, :eof), do: :file.pread(file, 0, size)
      after
        :file.close(file)
      end
    end
  end
end
