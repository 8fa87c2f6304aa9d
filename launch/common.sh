#!/usr/bin/env bash
# What the scripts of this folder share: sourced by them, not a command.

# The exit codes after which the same command goes on where it was: 75 preempted, 76 a hang or a lost
# process, and any death by a signal (128 + its number: out of memory 137, a crash 134 or 139), of
# which nobody knows the reason. All others are final: 0 done, 130 Ctrl-C, and what running again
# doesn't mend (1 a bug, 2 usage, 3 data, 4 numbers, 5 disk, 6 checkpoint, 7 weights).
worth_restarting() { # CODE
  case "$1" in
    75 | 76) return 0 ;;
    130) return 1 ;;
    *) (($1 > 128 && $1 < 160)) ;;
  esac
}

# Seconds to wait before restart number N (from 0): 5, 10, 20 ... 300.
backoff() { # N
  local seconds=$((5 << ($1 < 6 ? $1 : 6)))
  echo "$((seconds < 300 ? seconds : 300))"
}

# Counts one more restart after a run that began at STARTED (in SECONDS) and ended with CODE, and sets
# `pause`, the seconds until then; gives up, and ends the script, after `limit` of them in a row.
restarts=0
next_restart() { # CODE STARTED
  if ((SECONDS - $2 >= 600)); then
    restarts=0
  fi
  # shellcheck disable=SC2154  # limit is the script's
  if ((restarts >= limit)); then
    say "exit code $1; given up after $limit restarts in a row"
    exit "$1"
  fi
  pause=$(backoff "$restarts")
  restarts=$((restarts + 1))
  say "exit code $1: the same command again in $pause s, restart $restarts of $limit"
}

# Prints a command in one line, so that pasting it into a shell runs just that command.
show() { # COMMAND...
  local word words=()
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    words+=("$word")
  done
  echo "${words[*]}"
}

# Runs a command, or prints it if --dry-run was given.
dry_run=false
run_or_show() { # COMMAND...
  if $dry_run; then
    show "$@"
  else
    "$@"
  fi
}

# Prints to stderr what a script does by itself, with the script's name.
say() { # TEXT
  echo "$(basename "$0"): $1" >&2
}

# Ends the script because of how it was called.
usage_error() { # TEXT
  say "$1; --help shows how"
  exit 2
}

# The value of a flag that is a number: `number --port=123` prints 123.
number() { # --NAME=VALUE
  [[ $1 =~ ^--[a-z-]+=[0-9]+$ ]] || usage_error "$1: expected a whole number"
  echo "${1#*=}"
}

# Prints the comment at the top of a script: its --help.
help_of() { # FILE
  sed -n '2,/^[^#]/ { /^#SBATCH/d; s/^# \{0,1\}//p; }' "$1"
}
