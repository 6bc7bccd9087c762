#!/usr/bin/env bash
# Builds the first release and runs it in the foreground; Ctrl-C stops it.
#   PORT               where to serve (4000)
#   DEMO_BUTTON_LABEL  what the first release's button says
#   DEMO_SOURCE        the project that a click rebuilds (this directory)
#   DEMO_RATE          requests per second of the page's own prober (50)
set -euo pipefail
cd "$(dirname "$0")"

export PORT=${PORT:-4000} DEMO_BUTTON_LABEL=${DEMO_BUTTON_LABEL:-Hello} DEMO_SOURCE=${DEMO_SOURCE:-$PWD}
export MIX_ENV=prod DEMO_VERSION=0.1.0

cd "$DEMO_SOURCE"
mix deps.get
rm -f _build/prod/example-*.tar.gz
mix do compile --force, release --overwrite --quiet

# A release of its own to run from: the next `mix release` writes over the one it made.
run=$DEMO_SOURCE/_build/run-$PORT
rm -rf "$run"
mkdir -p "$run"
tar xzf "_build/prod/example-$DEMO_VERSION.tar.gz" -C "$run"

export BEAM_DEPLOY=1 RELEASE_DISTRIBUTION=name RELEASE_NODE=example_$PORT@127.0.0.1
SECRET_KEY_BASE=$(head -c 48 /dev/urandom | base64 -w 0)
export SECRET_KEY_BASE

# Ctrl-C is for this script: it asks the release to stop in order, which the signal itself would not.
export ELIXIR_ERL_OPTIONS="${ELIXIR_ERL_OPTIONS:-} +Bi"
"$run/bin/example" start </dev/null &
app=$!
trap 'kill -TERM "$app" 2>/dev/null || true' INT TERM
echo "http://localhost:$PORT"
while kill -0 "$app" 2>/dev/null; do wait "$app" || true; done
