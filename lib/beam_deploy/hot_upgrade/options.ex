defmodule BeamDeploy.HotUpgrade.Options do
  @moduledoc false
  # Responsible for: what `hot_upgrade/2` and `plan/2` accept: checks and defaults.
  # Not for: what the options do.

  @enforce_keys [:otp_app]
  defstruct [
    :otp_app,
    :release_root,
    :against,
    suspend_timeout: 3_000,
    code_change_timeout: 5_000,
    force: false,
    config: false,
    supervisors: false
  ]

  @type t :: %__MODULE__{
          otp_app: atom() | nil,
          release_root: Path.t() | nil,
          against: Path.t() | nil,
          suspend_timeout: pos_integer(),
          code_change_timeout: pos_integer(),
          force: boolean(),
          config: boolean(),
          supervisors: boolean()
        }

  @hot_upgrade [
    otp_app: :application,
    suspend_timeout: :milliseconds,
    code_change_timeout: :milliseconds,
    force: :boolean,
    config: :boolean,
    supervisors: :boolean,
    release_root: :path
  ]

  @plan [
    otp_app: :application,
    against: :path,
    config: :boolean,
    supervisors: :boolean
  ]

  @doc "Checks the options of `BeamDeploy.hot_upgrade/2`; raises `ArgumentError` for the first that is wrong."
  @spec hot_upgrade!(keyword()) :: t()
  def hot_upgrade!(options) do
    options = check!(options, @hot_upgrade, "hot_upgrade")

    unless Keyword.has_key?(options, :otp_app) do
      raise ArgumentError,
            "BeamDeploy.hot_upgrade needs the option :otp_app, #{expectation(:application)}"
    end

    struct!(__MODULE__, options)
  end

  @doc "Checks the options of `BeamDeploy.plan/2`."
  @spec plan!(keyword()) :: t()
  def plan!(options) do
    struct!(__MODULE__, Keyword.put_new(check!(options, @plan, "plan"), :otp_app, nil))
  end

  defp check!(options, kinds, function) do
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

  defp names(kinds), do: kinds |> Keyword.keys() |> Enum.map_join(", ", &inspect/1)

  defp valid?(:application, value),
    do: is_atom(value) and value not in [nil, true, false]

  defp valid?(:milliseconds, value), do: is_integer(value) and value > 0
  defp valid?(:boolean, value), do: is_boolean(value)
  defp valid?(:path, value), do: is_binary(value) and value != ""

  defp expectation(:application), do: "the name of your application, such as :my_app"
  defp expectation(:milliseconds), do: "a positive number of milliseconds"
  defp expectation(:boolean), do: "true or false"
  defp expectation(:path), do: "a path"
end
