#!/usr/bin/env bash
# On a host of tpu_pod.sh, in the clone: a command that outlives the connection that starts it.
#
#   detached.sh start COMMAND...    starts it, unless one runs
#   detached.sh status              prints: running, ended STATUS, or none
#   detached.sh follow              its output, from the beginning to the end
#   detached.sh stop                sends it SIGTERM, upon which frozen_jax.main saves and ends
set -euo pipefail
verb=${1:-}
shift || true
case $verb in
  start | status | follow | stop) mkdir -p .run ;;
esac

case $verb in
  start)
    exec 9>.run/lock # the command inherits it, and holds the lock for as long as it lives
    if ! flock --nonblock 9; then
      echo "a run is going on already" >&2
      exit 0
    fi
    rm -f .run/status .run/pid
    : >.run/log # is there for `follow` from now on
    # shellcheck disable=SC2016  # the inner shell expands it
    setsid bash -c '"$@" & echo $! >.run/pid; wait $!; echo $? >.run/status' run "$@" \
      </dev/null >>.run/log 2>&1 &
    ;;
  status)
    touch .run/lock
    if ! flock --nonblock .run/lock true; then
      echo running
    elif [[ -e .run/status ]]; then
      echo "ended $(cat .run/status)"
    else
      echo none
    fi
    ;;
  follow)
    tail --lines=+1 --follow --sleep-interval=0.1 .run/log &
    flock .run/lock true # waits until the command has ended
    sleep 0.3            # until tail has looked again
    kill $!
    ;;
  stop)
    if [[ $(bash "$0" status) == running ]]; then
      kill "$(cat .run/pid)"
    fi
    ;;
  *)
    echo "error: '$verb' is none of start, status, follow, stop" >&2
    exit 2
    ;;
esac
