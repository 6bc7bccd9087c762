#!/bin/sh
# Starts the VM of a peer as `bin/NAME start` of its release would: env.sh, vm.args, sys.config and the release's own
# `elixir` script. What makes it a peer comes from the parent: the node's name, the boot script, a file with the cookie,
# a file for what it prints until it serves, and the arguments of this script, which are for the VM.
#
# The VM gets the cookie through its environment, which only this user can read; a command line everybody can.
set -e

exec 2>>"$BEAM_DEPLOY_OUTPUT"

# What is printed before the parent has taken charge of standard output would get elsewhere.
read -r _

REL_VSN_DIR="$RELEASE_ROOT/releases/$RELEASE_VSN"
PEER_NODE="$RELEASE_NODE"
PEER_COOKIE="$(cat "$BEAM_DEPLOY_COOKIE")"
PEER_DISTRIBUTION="$RELEASE_DISTRIBUTION"

rm -f "$BEAM_DEPLOY_COOKIE"
unset BEAM_DEPLOY_COOKIE
export RELEASE_COOKIE="$PEER_COOKIE"

# Standard output is the connection to the parent.
. "$REL_VSN_DIR/env.sh" >&2

# What env.sh says of the node is for the parent. A heart of its own would start a second parent.
RELEASE_NODE="$PEER_NODE"
RELEASE_COOKIE="$PEER_COOKIE"
RELEASE_DISTRIBUTION="$PEER_DISTRIBUTION"
unset HEART_COMMAND PEER_NODE PEER_COOKIE PEER_DISTRIBUTION

RELEASE_MODE="interactive"
RELEASE_TMP="${RELEASE_TMP:-"$RELEASE_ROOT/tmp"}"
RELEASE_VM_ARGS="${RELEASE_VM_ARGS:-"$REL_VSN_DIR/vm.args"}"
RELEASE_REMOTE_VM_ARGS="${RELEASE_REMOTE_VM_ARGS:-"$REL_VSN_DIR/remote.vm.args"}"
RELEASE_BOOT_SCRIPT="${RELEASE_BOOT_SCRIPT:-"start"}"
RELEASE_BOOT_SCRIPT_CLEAN="${RELEASE_BOOT_SCRIPT_CLEAN:-"start_clean"}"
RELEASE_SYS_CONFIG="${RELEASE_SYS_CONFIG:-"$REL_VSN_DIR/sys"}"

export RELEASE_ROOT RELEASE_NAME RELEASE_VSN RELEASE_COMMAND RELEASE_PROG RELEASE_NODE RELEASE_COOKIE \
  RELEASE_DISTRIBUTION RELEASE_MODE RELEASE_TMP RELEASE_VM_ARGS RELEASE_REMOTE_VM_ARGS RELEASE_BOOT_SCRIPT \
  RELEASE_BOOT_SCRIPT_CLEAN RELEASE_SYS_CONFIG

exec "$REL_VSN_DIR/elixir" --no-halt \
  --erl "-mode interactive $*" \
  --erl-config "$RELEASE_SYS_CONFIG" \
  --boot "$BEAM_DEPLOY_BOOT" \
  --boot-var RELEASE_LIB "$RELEASE_ROOT/lib" \
  --vm-args "$RELEASE_VM_ARGS"
