#!/usr/bin/env bash
# Runs frozen_jax.main on every host of a TPU pod slice, from any machine that has gcloud.
#
#   TPU_NAME=my-pod ZONE=us-central2-b launch/tpu_pod.sh \
#     --config=configs/recursive.py --workdir=/mnt/shared/recursive [--config.mesh.fsdp=16] [--dry-run]
#
# The workdir must be on a file system that all hosts share (for example a mounted bucket).
#
# --dry-run   anywhere: print the command and run nothing
# TPU_NAME    name of the TPU VM or pod slice            ZONE    its zone
# FOLDER      the clone on each host (default: frozen_jax, in the home folder), installed there
#             with: pip install -e '.[tpu]'
# PYTHON      the interpreter on each host (default: python3), for example .venv/bin/python
#
# FROZEN_JAX_DISTRIBUTED=auto lets the hosts find each other through the TPU's own metadata (see
# frozen_jax/sharding/hosts.py).
set -euo pipefail

dry_run=false
for argument; do # --dry-run stands anywhere among the arguments
  shift
  if [[ $argument == --dry-run ]]; then
    dry_run=true
  else
    set -- "$@" "$argument"
  fi
done
if [[ -z ${TPU_NAME:-} || -z ${ZONE:-} ]]; then
  echo "error: set TPU_NAME and ZONE; the head of $0 shows how" >&2
  exit 2
fi

arguments=""
if (($#)); then
  printf -v arguments ' %q' "$@"
fi
printf -v folder '%q' "${FOLDER:-frozen_jax}"
program="${PYTHON:-python3} -m frozen_jax.main${arguments}"
remote="cd $folder && FROZEN_JAX_DISTRIBUTED=auto exec $program"
command=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--zone=$ZONE" --worker=all "--command=$remote")

if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
