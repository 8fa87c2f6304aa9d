#!/usr/bin/env bash
# Runs COMMAND on Kubernetes as the JobSet of jobset.yaml:
#
#   launch/kubernetes/run.sh [OPTIONS] --name=NAME --image=IMAGE COMMAND...
#
#   --nodes=N        pods, each one process with all GPUs of a node (1)
#   --gpus=N         GPUs of a pod (8)
#   --claim=CLAIM    a PersistentVolumeClaim, mounted at /data in every pod; without it use buckets
#   --namespace=NS   otherwise kubectl's own
#   --dry-run        prints the command with the manifest, and doesn't run it
#   --help
#
# Wants the JobSet controller in the cluster: https://jobset.sigs.k8s.io/docs/installation/. When and how
# often it starts again is in jobset.yaml. `kubectl logs -f NAME-train-0-0-...` shows process 0,
# `kubectl delete jobset NAME` ends it.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/../common.sh"

name=
image=
nodes=1
gpus=8
claim=
namespace=
while [[ ${1:-} == -* ]]; do
  case "$1" in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --nodes=*) nodes=$(number "$1") ;;
    --gpus=*) gpus=$(number "$1") ;;
    --claim=*) claim=${1#*=} ;;
    --namespace=*) namespace=${1#*=} ;;
    --dry-run) dry_run=true ;;
    --help | -h)
      help_of "$0"
      exit
      ;;
    *) usage_error "$1: unknown option" ;;
  esac
  shift
done
# A pod's host name, NAME-train-0-NUMBER, has at most 63 letters.
[[ $name =~ ^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$ ]] ||
  usage_error "--name=$name: expected up to 42 lower-case letters, digits and -, a letter first"
[[ -n $image ]] || usage_error '--image=IMAGE is missing'
((nodes > 0)) || usage_error '--nodes=0: expected at least 1'
(($# > 0)) || usage_error 'COMMAND is missing'

# A word as a string of JSON, which is one of YAML, too.
quoted() { # TEXT
  local text=$1
  [[ $text != *[[:cntrl:]]* ]] || usage_error "a control character in an argument: $text"
  text=${text//\\/\\\\}
  echo "\"${text//\"/\\\"}\""
}

arguments=
for word in "$@"; do
  text=$(quoted "$word")
  # Kubernetes replaces $(NAME) in arguments, and $$ by $.
  arguments+="${arguments:+, }${text//\$/\$\$}"
done
if [[ -n $claim ]]; then
  volume="persistentVolumeClaim: {claimName: $(quoted "$claim")}"
else
  volume='emptyDir: {}' # goes with the pod
fi

manifest=$(<"$here/jobset.yaml")
# The quotes around a replacement keep & in it as it is.
manifest=${manifest//@NAME@/"$name"}
manifest=${manifest//@NODES@/"$nodes"}
manifest=${manifest//@GPUS@/"$gpus"}
manifest=${manifest//@VOLUME@/"$volume"}
image=$(quoted "$image")
manifest=${manifest//@IMAGE@/"$image"}
manifest=${manifest//@COMMAND@/"$arguments"}

apply=(kubectl apply)
if [[ -n $namespace ]]; then
  apply+=("--namespace=$namespace")
fi
apply+=(--filename=-)
if $dry_run; then
  show "${apply[@]}" | sed "s/\$/ <<'END'/"
  printf '%s\nEND\n' "$manifest"
else
  "${apply[@]}" <<<"$manifest"
fi
