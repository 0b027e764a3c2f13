#!/usr/bin/env bash
# From nothing to a trained DenseVLM on a generated world: set-up, then tools/demo.py with the same arguments.
#
#   bash tools/demo.sh                            # seed 0, one table and one picture in work_dirs/miniworld
#   bash tools/demo.sh --compare --seeds 0 1 2
#   bash tools/demo.sh --detection --seeds 0 1    # on top of it: tools/demo_detection.py
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
demo=tools/demo.py
if [ "${1:-}" = --detection ]; then
    demo=tools/demo_detection.py
    shift
fi
bash tools/setup_env.sh
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
exec "${DENSEVLM_VENV:-.venv}/bin/python" "$demo" "$@"
