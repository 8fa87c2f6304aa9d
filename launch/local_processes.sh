#!/usr/bin/env bash
# Runs COMMAND as N processes of one job on this machine:
#
#   launch/local_processes.sh [OPTIONS] N COMMAND...
#   launch/local_processes.sh 2 python -m sg2jax.main --config=configs/quickstart.py --workdir=runs/two
#
# Each process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and its lines are
# shown after [rank]. SIGTERM, SIGINT (Ctrl-C) and SIGHUP are passed on. The exit code is the first
# one that wasn't 0. When a process fails, the others have time to notice by themselves; then they are
# told to stop, then killed. The same command goes on with a run that was interrupted.
#
#   --gpu-each      process number i sees GPU number i only
#   --port=P        of the coordinator; by default a free one
#   --patience=S    seconds that the others have after the first failure (60)
#   --grace=S       seconds between telling them to stop and killing them (60)
#   --dry-run       prints the commands and runs none
#   --help
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

gpu_each=false
port=
patience=60
grace=60
while [[ ${1:-} == -* ]]; do
  case "$1" in
    --gpu-each) gpu_each=true ;;
    --port=*) port=$(number "$1") ;;
    --patience=*) patience=$(number "$1") ;;
    --grace=*) grace=$(number "$1") ;;
    --dry-run) dry_run=true ;;
    --help | -h)
      help_of "$0"
      exit
      ;;
    *) usage_error "$1: unknown option" ;;
  esac
  shift
done
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || usage_error "N=${1:-}: expected the number of processes"
count=$1
shift
(($# > 0)) || usage_error 'COMMAND is missing'

# A port that nobody listens on, above those that Linux gives to outgoing connections.
free_port() {
  local candidate
  while true; do
    candidate=$((61000 + RANDOM % 4500))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

# The command of one process.
command_of() { # RANK COMMAND...
  local rank=$1
  shift
  command=(env "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$count")
  command+=("JAX_PROCESS_ID=$rank")
  if $gpu_each; then
    command+=("JAX_LOCAL_DEVICE_IDS=$rank")
  fi
  command+=("$@")
}

port=${port:-$(free_port)}
if $dry_run; then
  for ((rank = 0; rank < count; rank++)); do
    command_of "$rank" "$@"
    show "${command[@]}"
  done
  exit
fi

# ---- starting

scratch=$(mktemp -d)
pids=()    # of the processes, by rank; each leads a process group of the same number
codes=()   # their exit codes, by rank; empty while they run
readers=() # what puts [rank] in front of lines

# Ends whatever is left, including children of the processes that outlived them.
end_all() {
  local rank
  for ((rank = 0; rank < ${#pids[@]}; rank++)); do
    kill -KILL -- "-${pids[rank]}" 2>/dev/null || true
  done
}
trap 'end_all; rm -rf "$scratch"' EXIT

# Copies lines, whole, with [RANK] before each.
prefix() { # RANK
  # It lives as long as there is somebody to read from, whoever is being stopped.
  trap '' TERM INT HUP
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

start() { # RANK COMMAND...
  local rank=$1 out="$scratch/$1.out" err="$scratch/$1.err"
  command_of "$@"
  mkfifo "$out" "$err"
  prefix "$rank" <"$out" &
  readers+=("$!")
  prefix "$rank" <"$err" >&2 &
  readers+=("$!")
  # -m: in a process group of its own. A terminal then sends Ctrl-C to this script alone, which passes
  # it on once (twice means "at once"), and bash doesn't make the process ignore it.
  set -m
  "${command[@]}" </dev/null >"$out" 2>"$err" &
  set +m
  pids+=("$!")
  codes+=('')
}

# ---- stopping

first=0  # the first exit code that wasn't 0
term_at= # when to tell the others to stop, in SECONDS of this shell
kill_at= # when to kill them

# Sends a signal to the processes that still run.
signal_all() { # NAME
  local rank
  for ((rank = 0; rank < ${#pids[@]}; rank++)); do
    if [[ -z ${codes[rank]} ]]; then
      kill "-$1" "${pids[rank]}" 2>/dev/null || true
    fi
  done
}

# shellcheck disable=SC2329  # by the traps
pass_on() { # NAME
  say "SIG$1: passed on to the processes"
  signal_all "$1"
  kill_at=$((SECONDS + grace))
}
# Set before any process is started: from then on a signal leaves none behind.
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap 'pass_on HUP' HUP

# Notes the exit codes of processes that ended since the last call.
collect() {
  local rank code now=()
  for ((rank = 0; rank < count; rank++)); do
    if [[ -z ${codes[rank]} ]] && ! kill -0 "${pids[rank]}" 2>/dev/null; then
      code=0
      wait "${pids[rank]}" 2>/dev/null || code=$?
      codes[rank]=$code
      running=$((running - 1))
      if ((code != 0)); then
        say "process $rank ended with exit code $code"
        now+=("$code")
      fi
    fi
  done
  if ((first != 0 || ${#now[@]} == 0)); then
    return
  fi
  # Of several that ended within a tenth of a second, one that lost a peer (76) wasn't the first.
  first=${now[0]}
  for code in "${now[@]}"; do
    if ((first == 76)); then
      first=$code
    fi
  done
  term_at=$((SECONDS + patience))
}

for ((rank = 0; rank < count; rank++)); do
  start "$rank" "$@"
done
running=$count
while ((running > 0)); do
  sleep 0.1 || true # a signal to all of a group ends it, too
  collect
  if [[ -n $term_at ]] && ((running > 0 && SECONDS >= term_at)); then
    say "$running of $count processes still run $patience s after the first failure: SIGTERM"
    signal_all TERM
    term_at=
    kill_at=$((SECONDS + grace))
  fi
  if [[ -n $kill_at ]] && ((running > 0 && SECONDS >= kill_at)); then
    say "$running of $count processes still run after $grace s: SIGKILL"
    signal_all KILL
    kill_at=
  fi
done

# Children of a process that outlived it would keep its output open.
end_all
wait "${readers[@]}" || true
exit "$first"
