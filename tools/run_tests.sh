#!/usr/bin/env bash
# Makes the environment (see tools/setup_env.sh, whose variables apply) and runs the tests in it, without network.
#
#   bash tools/run_tests.sh                        # all of them, in two processes
#   bash tools/run_tests.sh [arguments of pytest]  # as they say
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export DENSEVLM_VENV=${DENSEVLM_VENV:-$PWD/.venv}
bash tools/setup_env.sh
export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
# files stay together, since the tests of one share what it trains
[ $# -gt 0 ] || set -- --numprocesses 2 --dist loadfile --durations 25
exec "$DENSEVLM_VENV/bin/python" -m pytest "$@"
