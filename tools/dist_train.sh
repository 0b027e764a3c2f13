#!/usr/bin/env bash
# Trains on several GPUs of one machine, or of NNODES machines when run on each of them.
#
#   bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
#
# Environment variables:
#   NNODES       number of machines                   (default: 1)
#   NODE_RANK    index of this machine                (default: 0)
#   MASTER_ADDR  address of the machine with rank 0   (default: 127.0.0.1)
#   PORT         a free port of that machine          (default: 29500)
#   PYTHON       interpreter                          (default: python)
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: bash $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
CONFIG=$1 GPUS=$2
shift 2

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$(dirname "${BASH_SOURCE[0]}")/train.py" "$CONFIG" --launcher pytorch "$@"
