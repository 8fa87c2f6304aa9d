#!/usr/bin/env bash
# Runs COMMAND on this machine, and again when it was interrupted:
#
#   launch/gpu.sh [OPTIONS] COMMAND...
#   launch/gpu.sh python -m sg2jax.main --config=configs/ffhq.py --workdir=runs/ffhq
#
# One process has all GPUs. After exit code 75 (preempted), 76 (a hang or a lost process) and deaths by
# a signal the same command is run again, after 5 s, then 10, 20 ... 300; any other exit code is final.
# SIGTERM, SIGINT (Ctrl-C) and SIGHUP are passed on, and end it.
#
#   --restarts=N     gives up after so many restarts in a row (20); a run of 10 minutes or more counts
#                    as progress, after which counting begins anew
#   --processes=N    N processes with a GPU each instead, by launch/local_processes.sh
#   --dry-run        prints the command and doesn't run it
#   --help
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/common.sh"

limit=20
processes=0
while [[ ${1:-} == -* ]]; do
  case "$1" in
    --restarts=*) limit=$(number "$1") ;;
    --processes=*) processes=$(number "$1") ;;
    --dry-run) dry_run=true ;;
    --help | -h)
      help_of "$0"
      exit
      ;;
    *) usage_error "$1: unknown option" ;;
  esac
  shift
done
(($# > 0)) || usage_error 'COMMAND is missing'
if ((processes > 0)); then
  set -- "$here/local_processes.sh" --gpu-each "$processes" "$@"
fi
if $dry_run; then
  show "$@"
  exit
fi

child=
stopped=false
pass_on() { # NAME
  stopped=true
  if [[ -n $child ]]; then
    kill "-$1" "$child" 2>/dev/null || true
  fi
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap 'pass_on HUP' HUP

# Runs a command to its end; `code` is its exit code.
run() { # COMMAND...
  # -m: in a process group of its own, so that Ctrl-C reaches it once, through this script.
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  # A signal ends `wait` before the command has ended.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" 2>/dev/null || true
  done
  code=0
  wait "$child" 2>/dev/null || code=$?
  child=
}

while true; do
  started=$SECONDS
  run "$@"
  if $stopped || ! worth_restarting "$code"; then
    exit "$code"
  fi
  next_restart "$code" "$started"
  # In the background, as bash acts on a signal only after a command in the foreground.
  sleep "$pause" &
  wait "$!" || true
  if $stopped; then
    exit "$code"
  fi
done
