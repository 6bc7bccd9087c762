defmodule BeamDeploy.Release.Step do
  @moduledoc """
  A step of `mix release` that adds `bin/NAME_deploy` to the release:

      # mix.exs
      releases: [
        my_app: [steps: [:assemble, &BeamDeploy.Release.Step.run/1, :tar]]
      ]

      $ bin/my_app_deploy upgrade /tmp/my_app-0.2.0.tar.gz
      $ bin/my_app_deploy rollback
      $ bin/my_app_deploy status

  The commands are `upgrade`, `hot`, `plan`, `rollback`, `status`, `history` and `info`; without any it lists them. They go
  through `bin/NAME rpc`, so the release has to be running. Paths may be relative. The exit status is 0, 1 for a
  failure, or 2 for a command that there is not.
  """

  @doc "Writes the script. To be put after `:assemble`."
  @spec run(Mix.Release.t()) :: Mix.Release.t()
  def run(%{name: name, path: path} = release) do
    file = Path.join([path, "bin", "#{name}_deploy"])
    File.write!(file, script(name, Mix.Project.config()[:app]))
    File.chmod!(file, 0o755)
    release
  end

  @doc false
  @spec script(atom(), atom()) :: String.t()
  def script(name, otp_app) do
    """
    #!/bin/sh
    # Deploys to the running release, see BeamDeploy.Release.Step.
    set -eu

    SELF=$(readlink "$0" || true)
    if [ -z "$SELF" ]; then SELF="$0"; fi
    BIN="$(CDPATH='' cd "$(dirname "$SELF")" && pwd -P)"

    # Whatever is in an argument, in hexadecimal it is only letters and digits.
    hex() { printf '%s' "$1" | od -An -v -tx1 | tr -d ' \\n'; }

    if [ $# -eq 0 ]; then set -- help; fi

    ARGUMENTS=
    for ARGUMENT in "$@"; do
      ARGUMENTS="$ARGUMENTS${ARGUMENTS:+, }\\"$(hex "$ARGUMENT")\\""
    done

    exec "$BIN/#{name}" rpc "BeamDeploy.CLI.main(:#{otp_app}, \\"$(hex "$PWD")\\", [$ARGUMENTS])"
    """
  end
end
