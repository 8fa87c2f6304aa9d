#!/usr/bin/env bash
# Cloud TPU slices, from one machine to a pod:
#
#   launch/tpu_pod.sh create  --name=NAME --zone=ZONE --type=v5litepod-16 [--spot] [--queued]
#   launch/tpu_pod.sh setup   --name=NAME --zone=ZONE
#   launch/tpu_pod.sh run     --name=NAME --zone=ZONE COMMAND...
#   launch/tpu_pod.sh logs    --name=NAME --zone=ZONE [--worker=0]
#   launch/tpu_pod.sh status  --name=NAME --zone=ZONE
#   launch/tpu_pod.sh babysit --name=NAME --zone=ZONE --type=v5litepod-16 [--spot] [--queued] COMMAND...
#   launch/tpu_pod.sh delete  --name=NAME --zone=ZONE [--queued]
#
#   create    asks for the slice and waits until it is there
#   setup     sends this clone's sg2jax/ and configs/ to all its machines and installs them
#   run       starts COMMAND on all of them; it goes on when you log out
#   logs      shows the log of one of them, as it grows
#   status    the state of the slice, and on each machine: running, or the exit code
#   babysit   all of these, until COMMAND is done: creates the slice where there is none, again after it
#             was preempted, and runs COMMAND again after exit codes 75, 76 and deaths by a signal.
#             Stop and start it as you like: it looks at what is there
#   delete    the slice, with all on its disks
#
# Options of all: --project=PROJECT (otherwise gcloud's own), --dry-run (prints the commands and runs
# none), --help. Of create and babysit:
#
#   --version=V     software of the machines; by default the one that Google names for the type
#   --spot          can be preempted, and costs less
#   --queued        waits in the queue for capacity (queued resources) instead of failing without
#   --restarts=N    babysit gives up after so many restarts in a row (20); a run of 10 minutes or more
#                   counts as progress, after which counting begins anew
#   --every=S       seconds between two looks of babysit (60)
#
# What is on the disks of a slice goes with it: --workdir=gs://BUCKET/RUN. It needs gcloud, logged in,
# and for more than one machine `ssh-add ~/.ssh/google_compute_engine`.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/common.sh"

action=${1:-}
case "$action" in
  create | setup | run | logs | status | babysit | delete) shift ;;
  --help | -h)
    help_of "$0"
    exit
    ;;
  *) usage_error "${action:-the first argument}: expected create, setup, run, logs, status, babysit or delete" ;;
esac

name=
zone=
project=
type=
version=
worker=0
spot=false
queued=false
limit=20
every=60
while [[ ${1:-} == -* ]]; do
  case "$1" in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --worker=*) worker=$(number "$1") ;;
    --spot) spot=true ;;
    --queued) queued=true ;;
    --restarts=*) limit=$(number "$1") ;;
    --every=*) every=$(number "$1") ;;
    --dry-run) dry_run=true ;;
    --help | -h)
      help_of "$0"
      exit
      ;;
    *) usage_error "$1: unknown option" ;;
  esac
  shift
done
[[ -n $name ]] || usage_error '--name=NAME is missing'
[[ -n $zone ]] || usage_error '--zone=ZONE is missing'
case "$action" in
  create | babysit) [[ -n $type ]] || usage_error '--type is missing, as in --type=v5litepod-16' ;;
esac
case "$action" in
  run | babysit) (($# > 0)) || usage_error 'COMMAND is missing' ;;
  *) (($# == 0)) || usage_error "$1: unexpected argument" ;;
esac

# https://cloud.google.com/tpu/docs/runtimes
if [[ -z $version ]]; then
  case "$type" in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi

where=("--zone=$zone")
if [[ -n $project ]]; then
  where+=("--project=$project")
fi
tpus=(gcloud compute tpus)

# ---- the slice

create() {
  local options=("${where[@]}" "--accelerator-type=$type")
  options+=("--metadata-from-file=startup-script=$here/tpu_startup.sh")
  if $spot; then
    options+=(--spot)
  fi
  if $queued; then
    # The slice in the queue has the name of the request.
    run_or_show "${tpus[@]}" queued-resources create "$name" "--node-id=$name" \
      "--runtime-version=$version" "${options[@]}" --quiet &&
      until_ready
  else
    run_or_show "${tpus[@]}" tpu-vm create "$name" "--version=$version" "${options[@]}" --quiet
  fi
}

delete() {
  if $queued; then
    run_or_show "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    run_or_show "${tpus[@]}" tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

describe() {
  if $queued; then
    run_or_show "${tpus[@]}" queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
  else
    run_or_show "${tpus[@]}" tpu-vm describe "$name" "${where[@]}" '--format=value(state)'
  fi
}

# ready, wait (it will be), lost (delete it), absent or unknown (ask again).
state() {
  local text
  if ! text=$(describe 2>/dev/null); then
    text=$(describe 2>&1 >/dev/null) || true
    case "$text" in
      *NOT_FOUND* | *"not found"*) echo absent ;;
      *) echo unknown ;;
    esac
    return
  fi
  case "$text" in
    READY | ACTIVE) echo ready ;;
    PREEMPTED | TERMINATED | STOPPED | FAILED | SUSPENDING | SUSPENDED) echo lost ;;
    *) echo 'wait' ;;
  esac
}

# Waits for a slice in the queue.
until_ready() {
  if $dry_run; then
    describe
    return
  fi
  while true; do
    case "$(state)" in
      ready) return ;;
      wait | unknown) sleep "$every" ;;
      *)
        say "$name: the request failed; \`status\` shows it, \`delete\` removes it"
        return 1
        ;;
    esac
  done
}

# ---- its machines

# A machine that was taken away answers nothing at all: don't wait for it for long.
patience=(--ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=20)

on() { # WORKERS SHELL_TEXT
  run_or_show "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" "${patience[@]}" "--worker=$1" \
    "--command=$2" --quiet
}

# Whoever has a lock on ~/sg2jax.lock is a run: the command has it open, and so have its children.
unless_running="flock -n ~/sg2jax.lock true || { echo 'a command is running here' >&2; exit 1; }"

setup() {
  local file="${TMPDIR:-/tmp}/sg2jax-$name.tar.gz"
  # What has to be there to run and no more: neither data nor runs.
  run_or_show tar -czf "$file" --exclude=__pycache__ -C "$here/.." \
    sg2jax configs README.md pyproject.toml requirements.txt &&
    run_or_show "${tpus[@]}" tpu-vm scp "$file" "$here/tpu_startup.sh" "$name:" "${where[@]}" \
      --worker=all --quiet &&
    on all "$unless_running; sudo bash tpu_startup.sh sg2jax-$name.tar.gz" &&
    run_or_show rm "$file"
}

# Two commands have the same number only if they are the same.
number_of() { # COMMAND...
  show "$@" | cksum | cut -d ' ' -f 1
}

# The shell text that starts COMMAND and leaves it running, as it goes on after the connection ends.
start_text() { # SECONDS_TO_WAIT_FOR_A_RUN_BEFORE COMMAND...
  local before=$unless_running
  if (($1 > 0)); then
    # The others of a process that failed notice it by themselves; what doesn't is in the way.
    before="flock -w $1 ~/sg2jax.lock true || fuser -s -k -KILL ~/sg2jax.lock || true"
  fi
  shift
  echo "set -e; cd /opt/sg2jax/source; $before; export PATH=/opt/sg2jax/venv/bin:\$PATH;" \
    "rm -f ~/sg2jax.code; echo $(number_of "$@") >~/sg2jax.number;" \
    "nohup flock ~/sg2jax.lock bash -c '\"\$@\" >>~/sg2jax.log 2>&1; echo \$? >~/sg2jax.code'" \
    "sg2jax $(show "$@") </dev/null >/dev/null 2>&1 &"
}

# The shell text that says what has become of the last command on a machine, or of COMMAND: bare (no
# setup), none (never started, or another since), running, or its exit code; 137 if it left none, as it
# was killed or the machine was.
outcome_text() { # [COMMAND...]
  local other='! -e ~/sg2jax.number'
  if (($# > 0)); then
    other="\"\$(cat ~/sg2jax.number 2>/dev/null)\" != $(number_of "$@")"
  fi
  echo "if [ ! -d /opt/sg2jax/source ]; then echo bare;" \
    "elif [ ! -e ~/sg2jax.code ] && ! flock -n ~/sg2jax.lock true; then echo running;" \
    "elif [ $other ]; then echo none; else cat ~/sg2jax.code 2>/dev/null || echo 137; fi"
}

# ---- keeping COMMAND running

babysit_dry() { # COMMAND...
  echo '# until COMMAND is done: what is there?'
  describe
  echo '# preempted or failed:'
  delete
  echo '# then, or where there is none:'
  create
  echo '# what does COMMAND do on machine 0?'
  on 0 "$(outcome_text "$@")"
  echo '# nothing is installed there:'
  setup
  echo "# not started, or exit code 75, 76 or more than 128 (not 130), up to $limit times in a row:"
  on all "$(start_text 120 "$@")"
  echo "# running: looks again in $every s; exit code 0 or any other ends it"
}

babysit() { # COMMAND...
  local outcome started=never
  while true; do
    case "$(state)" in
      absent)
        say "creating $name"
        create || sleep "$every"
        continue
        ;;
      lost)
        say "$name was preempted or failed: deleting it, to create it again"
        delete || sleep "$every"
        continue
        ;;
      wait | unknown)
        sleep "$every"
        continue
        ;;
    esac
    # A machine that doesn't answer may be going away: its state tells next time.
    outcome=$(on 0 "$(outcome_text "$@")" 2>/dev/null | tail -n 1) || outcome=
    case "$outcome" in
      bare)
        say 'setting it up'
        setup || sleep "$every"
        continue
        ;;
      none) ;;
      0)
        say 'done'
        return
        ;;
      *[!0-9]* | '') # running, or no answer
        sleep "$every"
        continue
        ;;
      *)
        # How it ended before babysit began to look is no reason not to try.
        if [[ $started != never ]]; then
          wait_or_end "$outcome"
        fi
        ;;
    esac
    say 'starting the command'
    on all "$(start_text 120 "$@")" || sleep "$every"
    started=$SECONDS
  done
}

# Waits before the next restart after an exit code, or ends with it. `started` is babysit's.
wait_or_end() { # CODE
  if ! worth_restarting "$1"; then
    say "exit code $1"
    exit "$1"
  fi
  next_restart "$1" "$started"
  sleep "$pause"
}

case "$action" in
  create) create ;;
  setup) setup ;;
  run) on all "$(start_text 0 "$@")" ;;
  logs) on "$worker" 'tail -n 100 -F ~/sg2jax.log' ;;
  status)
    describe
    on all "echo \"\$(hostname): \$($(outcome_text))\""
    ;;
  babysit) if $dry_run; then babysit_dry "$@"; else babysit "$@"; fi ;;
  delete) delete ;;
esac
