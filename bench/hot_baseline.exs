defmodule Bench.HotBaseline do
  @moduledoc false
  # The straightforward hot upgrade: extract, compare, suspend one by one, purge and load one by one, convert one by one,
  # resume one by one.

  @doc "Paths of the changed modules in a tarball, which is extracted into `dir`."
  def plan(tarball, dir, known) do
    File.mkdir_p!(dir)

    :ok =
      :erl_tar.extract(String.to_charlist(tarball), [:compressed, cwd: String.to_charlist(dir)])

    for path <- Path.wildcard(Path.join(dir, "lib/*/ebin/*.beam")),
        {:ok, {module, md5}} = :beam_lib.md5(String.to_charlist(path)),
        known[module] not in [nil, md5],
        do: {module, path}
  end

  def run(tarball, dir) do
    known =
      Map.new(:code.all_loaded(), fn {module, _path} -> {module, module.module_info(:md5)} end)

    changed = plan(tarball, dir, known)
    pids = processes(MapSet.new(changed, &elem(&1, 0)))

    {pause, {load, migrate}} =
      timed(fn ->
        Enum.each(pids, fn {pid, _module} -> :ok = :sys.suspend(pid) end)
        {load, :ok} = timed(fn -> Enum.each(changed, &load/1) end)

        {migrate, :ok} =
          timed(fn ->
            Enum.each(pids, fn {pid, module} ->
              :ok = :sys.change_code(pid, module, :undefined, [])
            end)
          end)

        Enum.each(pids, fn {pid, _module} -> :ok = :sys.resume(pid) end)
        {load, migrate}
      end)

    %{pause: pause, load: load, migrate: migrate}
  end

  defp processes(modules) do
    for pid <- Process.list(),
        {:dictionary, dictionary} <- [Process.info(pid, :dictionary)],
        {module, _, _} <- [dictionary[:"$initial_call"]],
        MapSet.member?(modules, module),
        do: {pid, module}
  end

  defp load({module, path}) do
    :code.purge(module)
    {:module, ^module} = :code.load_binary(module, String.to_charlist(path), File.read!(path))
    :ok
  end

  def timed(function) do
    {microseconds, result} = :timer.tc(function)
    {microseconds / 1000, result}
  end
end
