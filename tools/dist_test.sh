#!/usr/bin/env bash
# Tests on several GPUs of one machine, or of NNODES machines when run on each of them.
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
#
# Environment variables:
#   NNODES       number of machines                   (default: 1)
#   NODE_RANK    index of this machine                (default: 0)
#   MASTER_ADDR  address of the machine with rank 0   (default: 127.0.0.1)
#   PORT         a free port of that machine          (default: 29500)
#   PYTHON       interpreter                          (default: python)
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: bash $0 CONFIG CHECKPOINT GPUS [arguments of tools/test.py]" >&2
    exit 2
fi
CONFIG=$1 CHECKPOINT=$2 GPUS=$3
shift 3

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$(dirname "${BASH_SOURCE[0]}")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
