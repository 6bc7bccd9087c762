defmodule BeamDeploy.Options do
  @moduledoc false
  # Responsible for: what `start_link/1,2` and `upgrade/2` accept: checks and defaults.
  # Not for: what the options do.

  alias BeamDeploy.Release.Signature

  @enforce_keys [:otp_app, :start]
  defstruct [
    :otp_app,
    :start,
    :before_cutover,
    :after_cutover,
    :health_check,
    :dir,
    :verify,
    endpoint: :convention,
    shutdown_timeout: nil,
    boot_timeout: 120_000,
    health_timeout: 30_000,
    drain_timeout: 60_000,
    keep_releases: 3,
    max_restarts: 3,
    max_seconds: 60
  ]

  @type mfargs :: {module(), atom(), [term()]}
  @type t :: %__MODULE__{
          otp_app: atom(),
          start: mfargs(),
          endpoint: :convention | [module()],
          before_cutover: mfargs() | nil,
          after_cutover: mfargs() | nil,
          health_check: mfargs() | nil,
          shutdown_timeout: timeout() | nil,
          boot_timeout: timeout(),
          health_timeout: timeout(),
          drain_timeout: timeout(),
          dir: Path.t() | nil,
          verify: {:ed25519, binary()} | nil,
          keep_releases: pos_integer(),
          max_restarts: non_neg_integer(),
          max_seconds: pos_integer()
        }

  @kinds [
    otp_app: :application,
    start: :mfargs,
    endpoint: :modules,
    before_cutover: :optional_mfargs,
    after_cutover: :optional_mfargs,
    health_check: :optional_mfargs,
    shutdown_timeout: :optional_timeout,
    boot_timeout: :timeout,
    health_timeout: :timeout,
    drain_timeout: :timeout,
    dir: :path,
    verify: :key,
    keep_releases: :positive,
    max_restarts: :count,
    max_seconds: :positive
  ]

  @doc "Checks the options of `BeamDeploy.start_link/1,2`; raises `ArgumentError` for the first that is wrong."
  @spec new!(keyword()) :: t()
  def new!(options) do
    options = check!(options, @kinds, "start_link")

    require!(options, [:otp_app, :start], @kinds, "start_link")
    options = struct!(__MODULE__, Keyword.replace_lazy(options, :endpoint, &List.wrap/1))
    %{options | verify: Signature.trusted(options.verify)}
  end

  @doc "Checks the options of `BeamDeploy.upgrade/2`."
  @spec upgrade!(keyword()) :: keyword()
  def upgrade!(options), do: check!(options, [sha256: :digest], "upgrade")

  @doc """
  Checks options against what kind of value each takes. Raises `ArgumentError` for the first that is unknown or wrong, with
  what there is or what it takes. `function` is the one of `BeamDeploy` that they were given to.
  """
  @spec check!(keyword(), keyword(atom()), String.t()) :: keyword()
  def check!(options, kinds, function) do
    unless Keyword.keyword?(options) do
      raise ArgumentError, "BeamDeploy.#{function} takes a keyword list, got: #{inspect(options)}"
    end

    for {name, value} <- options do
      kind =
        kinds[name] ||
          raise ArgumentError,
                "BeamDeploy.#{function} has no option #{inspect(name)}, only #{names(kinds)}"

      unless valid?(kind, value) do
        raise ArgumentError,
              "the option #{inspect(name)} of BeamDeploy.#{function} takes #{expectation(kind)}, got: #{inspect(value)}"
      end
    end

    options
  end

  @doc "Raises `ArgumentError` for the first of these options that was not given."
  @spec require!(keyword(), [atom()], keyword(atom()), String.t()) :: :ok
  def require!(options, required, kinds, function) do
    for name <- required, not Keyword.has_key?(options, name) do
      raise ArgumentError,
            "BeamDeploy.#{function} needs the option #{inspect(name)}, #{expectation(kinds[name])}"
    end

    :ok
  end

  defp names(kinds), do: kinds |> Keyword.keys() |> Enum.map_join(", ", &inspect/1)

  defp valid?(:application, value), do: is_atom(value) and value not in [nil, true, false]

  defp valid?(:mfargs, {module, function, arguments}),
    do: is_atom(module) and is_atom(function) and is_list(arguments)

  defp valid?(:mfargs, _value), do: false
  defp valid?(:optional_mfargs, value), do: value == nil or valid?(:mfargs, value)
  defp valid?(:modules, value) when is_list(value), do: Enum.all?(value, &is_atom/1)
  defp valid?(:modules, value), do: is_atom(value)
  defp valid?(:timeout, value), do: value == :infinity or (is_integer(value) and value >= 0)
  defp valid?(:optional_timeout, value), do: value == nil or valid?(:timeout, value)
  defp valid?(:path, value), do: value == nil or (is_binary(value) and value != "")
  defp valid?(:key, value), do: value == nil or Signature.public_key?(value)
  defp valid?(:positive, value), do: is_integer(value) and value > 0
  defp valid?(:milliseconds, value), do: valid?(:positive, value)
  defp valid?(:count, value), do: is_integer(value) and value >= 0
  defp valid?(:boolean, value), do: is_boolean(value)
  defp valid?(:digest, value), do: is_binary(value) and value =~ ~r/\A[0-9a-fA-F]{64}\z/

  defp expectation(:application), do: "the name of your application, such as :my_app"
  defp expectation(:mfargs), do: "a {module, function, arguments} tuple"
  defp expectation(:optional_mfargs), do: "a {module, function, arguments} tuple or nil"
  defp expectation(:modules), do: "an endpoint module or a list of them"
  defp expectation(:timeout), do: "milliseconds or :infinity"
  defp expectation(:optional_timeout), do: "milliseconds, :infinity or nil"
  defp expectation(:path), do: "a path"

  defp expectation(:key),
    do: "{:ed25519, public_key}, the key being what `mix beam_deploy.gen.key` has printed, or nil"

  defp expectation(:positive), do: "a positive integer"
  defp expectation(:boolean), do: "true or false"
  defp expectation(:milliseconds), do: "a positive number of milliseconds"
  defp expectation(:count), do: "an integer of 0 or more"
  defp expectation(:digest), do: "the SHA-256 of the tarball as 64 hexadecimal digits"
end
