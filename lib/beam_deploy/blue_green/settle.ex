defmodule BeamDeploy.BlueGreen.Settle do
  @moduledoc false
  # Responsible for: waiting, after the cutover, until a side has had the last connection it will get.
  # Not for: what the peer of that side does with its connections.
  #
  # A connection begun before the cutover comes late for three reasons, which pass one after another: its handshake is
  # still under way; it waits in the accept queue; an acceptor has taken it and not handed it on.

  alias BeamDeploy.BlueGreen.Listener

  # A packet that the kernel was working on at the moment of the cutover has arrived by then.
  @first_look 10
  # Asking for handshakes costs the kernel a walk through all connections.
  @look 20
  @share_of_looking 4
  # The clocks of handshakes tick every 10 ms at worst.
  @slack 20
  # Whoever has not answered for three seconds, and to two packets, is gone.
  @given_up 3_000
  # Where the kernel does not tell, a client may have to send one packet twice.
  @blind 1_200
  # Measured: an acceptor that was stopped with none of this to spare lost connections, with 50 ms it did not.
  @quiet 50
  @poll 10

  @doc "Returns `{:stopped, reason}` as soon as `stopped` does, which is asked again and again; `:ok` at the latest after the timeout."
  @spec await(Listener.side(), (... -> nil | reason), timeout()) :: :ok | {:stopped, reason}
        when reason: term()
  def await(side, stopped, timeout) do
    if Listener.moved?(side) do
      context = %{side: side, stopped: stopped, since: now(), deadline: deadline(timeout)}

      with :ok <- pause(context, @first_look),
           :ok <- handshakes(context),
           :ok <- quiet(context, now()) do
        :ok
      else
        :late -> :ok
        {:stopped, reason} -> {:stopped, reason}
      end
    else
      ended(stopped)
    end
  end

  defp handshakes(%{since: since} = context) do
    started = now()

    case Listener.handshakes(context.side, max(started - since - @slack, 0), @given_up) do
      {:ok, 0} ->
        :ok

      {:ok, _under_way} ->
        with :ok <- pause(context, max(@look, @share_of_looking * (now() - started))),
             do: handshakes(context)

      {:error, _untold} ->
        pause(context, max(@blind - (now() - since), 0))
    end
  end

  defp quiet(context, since) do
    left = since + @quiet - now()

    cond do
      Listener.queued(context.side) > 0 ->
        with :ok <- pause(context, @poll), do: quiet(context, now())

      left > 0 ->
        with :ok <- pause(context, min(@poll, left)), do: quiet(context, since)

      true ->
        :ok
    end
  end

  # Goes on for as long as there is a reason to; past the deadline there is none.
  defp pause(context, interval) do
    Process.sleep(min(interval, remaining(context.deadline)))

    with :ok <- ended(context.stopped),
         do: if(remaining(context.deadline) == 0, do: :late, else: :ok)
  end

  defp ended(stopped) do
    case stopped.() do
      nil -> :ok
      reason -> {:stopped, reason}
    end
  end

  defp now, do: System.monotonic_time(:millisecond)

  defp deadline(:infinity), do: :infinity
  defp deadline(timeout), do: now() + timeout

  # A term that compares greater than any number.
  defp remaining(:infinity), do: :infinity
  defp remaining(deadline), do: max(deadline - now(), 0)
end
