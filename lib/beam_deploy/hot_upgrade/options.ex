defmodule BeamDeploy.HotUpgrade.Options do
  @moduledoc false
  # Responsible for: what `hot_upgrade/2` and `plan/2` accept: checks and defaults.
  # Not for: what the options do.

  alias BeamDeploy.Options
  alias BeamDeploy.Release.Signature

  @enforce_keys [:otp_app]
  defstruct [
    :otp_app,
    :release_root,
    :against,
    :sha256,
    :verify,
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
          sha256: String.t() | nil,
          verify: Signature.public_key() | nil,
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
    sha256: :digest,
    verify: :key,
    release_root: :path
  ]

  @plan [
    otp_app: :application,
    against: :path,
    config: :boolean,
    supervisors: :boolean,
    sha256: :digest,
    verify: :key
  ]

  @doc "Checks the options of `BeamDeploy.hot_upgrade/2`; raises `ArgumentError` for the first that is wrong."
  @spec hot_upgrade!(keyword()) :: t()
  def hot_upgrade!(options) do
    options = Options.check!(options, @hot_upgrade, "hot_upgrade")
    :ok = Options.require!(options, [:otp_app], @hot_upgrade, "hot_upgrade")
    new(options)
  end

  @doc "Checks the options of `BeamDeploy.plan/2`."
  @spec plan!(keyword()) :: t()
  def plan!(options),
    do: options |> Options.check!(@plan, "plan") |> Keyword.put_new(:otp_app, nil) |> new()

  defp new(options) do
    options = struct!(__MODULE__, options)
    %{options | verify: Signature.trusted(options.verify)}
  end
end
