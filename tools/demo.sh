#!/usr/bin/env bash
# From nothing to a trained DenseVLM on a generated world: set-up, then tools/demo.py with the same arguments.
#
#   bash tools/demo.sh                            # seed 0, one table and one picture in work_dirs/miniworld
#   bash tools/demo.sh --compare --seeds 0 1 2
#   bash tools/demo.sh --detection --seeds 0 1     # on top of it: tools/demo_detection.py
#   bash tools/demo.sh --segmentation --seeds 0 1  # likewise: tools/demo_segmentation.py
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
demo=tools/demo.py setup=(--lite)
case "${1:-}" in --detection | --segmentation)
    demo=tools/demo_${1#--}.py setup=()
    shift
    ;;
esac
bash tools/setup_env.sh "${setup[@]}"
export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
exec "${DENSEVLM_VENV:-.venv}/bin/python" "$demo" "$@"
