#!/usr/bin/env bash
# What a TPU VM does at boot, so that launch/tpu_pod.sh can run a command on it:
#
#   launch/tpu_startup.sh [--dry-run] [SOURCE.tar.gz]
#
# Makes a Python environment with jax[tpu] in /opt/sg2jax/venv; with SOURCE.tar.gz (`tpu_pod.sh setup`
# sends it) also unpacks it to /opt/sg2jax/source and installs what it needs. Running it again does only
# what is missing. As a startup script it runs as root; its output is in the system's log.
#
#   --dry-run   prints the commands and runs none
#   --help
#
# SG2JAX_HOME is another place than /opt/sg2jax. This file is sent alone: it sources nothing.
set -euo pipefail

home=${SG2JAX_HOME:-/opt/sg2jax}
venv=$home/venv
dry_run=false
case "${1:-}" in
  --dry-run)
    dry_run=true
    shift
    ;;
  --help | -h)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit
    ;;
  -*)
    echo "tpu_startup.sh: $1: unknown option; --help shows how" >&2
    exit 2
    ;;
esac
source_file=${1:-}

run() { # COMMAND...
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Python 3.11 or newer, which sg2jax needs; none where there isn't one that can make environments.
find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3; do
    if "$name" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
}

run mkdir -p "$home"
# `setup` may come while the boot is still installing: one after the other.
if ! $dry_run; then
  exec 9>"$home/lock"
  flock 9
fi

if [[ ! -x $venv/bin/python ]]; then
  python=$(find_python)
  if [[ -n $python ]]; then
    run "$python" -m venv "$venv"
  else
    # Images for TPUs have Python 3.10; uv brings a newer one.
    run python3 -m pip install --quiet --target "$home/uv" uv
    # Not in root's home, where no one else may look.
    run env "UV_PYTHON_INSTALL_DIR=$home/python" "$home/uv/bin/uv" venv --quiet --seed \
      --python 3.12 --python-preference only-managed "$venv"
  fi
fi
# Before sg2jax: its own requirement of jax is met by this one, which knows the TPU.
run "$venv/bin/python" -m pip install --quiet 'jax[tpu]'

if [[ -n $source_file ]]; then
  # Anew, so that no file of before stays.
  run rm -rf "$home/source"
  run mkdir -p "$home/source"
  run tar -xzf "$source_file" --no-same-owner -C "$home/source"
  run chmod -R a+rX "$home/source"
  run cd "$home/source"
  run "$venv/bin/python" -m pip install --quiet -r requirements.txt -e '.[gcs]'
fi
