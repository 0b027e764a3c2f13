#!/usr/bin/env bash
# Trains on a Slurm cluster.
#
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]
#
# Environment variables:
#   GPUS           processes in all, one per GPU       (default: 8)
#   GPUS_PER_NODE  GPUS of one machine                 (default: 8, or GPUS where that is less)
#   CPUS_PER_TASK  CPU cores of one process            (default: 5)
#   SRUN_ARGS      further arguments of srun           (default: none)
#   MASTER_PORT    a free port of the first machine    (default: 29500)
#   PYTHON         interpreter                         (default: python)
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: bash $0 PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]" >&2
    exit 2
fi
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 WORK_DIR=$4
shift 4
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}

# SRUN_ARGS is a list of words
# shellcheck disable=SC2086
exec srun --partition="$PARTITION" --job-name="$JOB_NAME" \
    --gres="gpu:$GPUS_PER_NODE" --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "${BASH_SOURCE[0]}")/train.py" \
    "$CONFIG" --work-dir "$WORK_DIR" --launcher slurm "$@"
