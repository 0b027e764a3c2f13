#!/usr/bin/env bash
# Makes (or completes) the virtual environment `.venv` of this checkout and installs the package into it, editable.
#
#   bash tools/setup_env.sh           # everything
#   bash tools/setup_env.sh --lite    # without detection, segmentation and tests: nothing is compiled
#
# Safe to re-run: finished steps are recognised and skipped. Environment variables:
#   PYTHON            interpreter to start from                     (default: python3, else python3.10 .. python3.13)
#   DENSEVLM_VENV     where the environment goes                    (default: <checkout>/.venv)
#   DENSEVLM_CACHE    where the compiled mmcv wheel is kept         (default: ${XDG_CACHE_HOME:-~/.cache}/densevlm_mm)
#   MAX_JOBS          compiler processes for mmcv                   (default: number of cores)
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${DENSEVLM_VENV:-$ROOT/.venv}
CACHE=${DENSEVLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/densevlm_mm}
TORCH=2.11.0 TORCHVISION=0.26.0 MMCV=2.1.0

say() { printf '\033[1m[set-up %4ds]\033[0m %s\n' "$SECONDS" "$*"; }
die() { printf '\n[set-up] cannot go on: %s\n' "$1" >&2; shift; printf '  remedy: %s\n' "$@" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10 python3.13}; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null || continue
        command -v "$candidate" && return
    done
    return 1
}

check_tools() {
    PY=$(find_python) || die "no Python 3.10, 3.11 or 3.12 was found${PYTHON:+ under PYTHON=$PYTHON}" \
        "apt-get install python3 python3-venv python3-dev, or set PYTHON=/path/to/python"
    "$PY" -c 'import venv, ensurepip' 2>/dev/null || die "$PY cannot make virtual environments" "apt-get install python3-venv"
    local free
    free=$(df -Pk "$ROOT" | awk 'NR==2 {print int($4 / 1048576)}')
    [ -x "$VENV/bin/python" ] || [ "$free" -ge 8 ] || die "only $free GiB free at $ROOT; the environment takes about 7" "free some disk space"
}

check_compiler() {
    command -v g++ >/dev/null 2>&1 || die "mmcv has to be compiled once and there is no C++ compiler" "apt-get install g++"
    [ -f "$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h" ] \
        || die "the Python headers are missing" "apt-get install python3-dev"
}

has() { "$VENV/bin/python" -c "$1" >/dev/null 2>&1; }

install() {
    "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --progress-bar off "$@" \
        || die "pip could not install: $*" "see pip's message above; check the network or the package index (PIP_INDEX_URL)"
}

make_venv() {
    [ -x "$VENV/bin/python" ] && return
    say "virtual environment in $VENV ($("$PY" --version))"
    "$PY" -m venv "$VENV" || { rm -rf "$VENV"; die "python -m venv failed" "apt-get install python3-venv"; }
}

install_torch() {
    has "import torch, torchvision; assert torch.__version__.split('+')[0] == '$TORCH'" && return
    say "torch $TORCH and torchvision $TORCHVISION (several GB, a few minutes)"
    install "torch==$TORCH" "torchvision==$TORCHVISION"
}

has_ops() {  # $1: a wheel; without torch at build time, mmcv quietly makes one that lacks its operators
    "$VENV/bin/python" -c 'import sys, zipfile; sys.exit(not any("mmcv/_ext" in n for n in zipfile.ZipFile(sys.argv[1]).namelist()))' "$1"
}

build_mmcv_wheel() {  # $1: folder that receives the wheel
    check_compiler
    say "compiling mmcv $MMCV (once per user, about 8 minutes on 2 cores)"
    local scratch log status=0 pid
    mkdir -p "$1"
    scratch=$(mktemp -d "$1/.build.XXXXXX"); log=$scratch/log
    MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} "$VENV/bin/python" -m pip wheel --disable-pip-version-check --verbose \
        --no-build-isolation --no-deps --no-binary mmcv --no-cache-dir "mmcv==$MMCV" -w "$scratch" >"$log" 2>&1 &
    pid=$!
    trap 'kill $pid 2>/dev/null; rm -rf "$scratch"; exit 130' INT TERM
    while kill -0 $pid 2>/dev/null; do
        sleep 20
        say "  ... mmcv: $(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 || true)"
    done
    wait $pid || status=$?
    trap - INT TERM
    if [ $status -ne 0 ] || ! has_ops "$scratch"/mmcv-*.whl; then
        tail -n 40 "$log" >&2
        cp "$log" "$1/build.log"; rm -rf "$scratch"
        die "mmcv's compiled operators could not be built" "read $1/build.log; needs g++ >= 9, the Python headers and about 3 GB of memory per job (MAX_JOBS=1)"
    fi
    mv "$scratch"/mmcv-*.whl "$1/"
    rm -rf "$scratch"
}

install_mmcv() {
    has "import mmcv, mmcv._ext; assert mmcv.__version__ == '$MMCV'" && return
    # mmcv's wheel will ask for the OpenCV it was built beside; the headless one needs no display libraries
    install 'setuptools<81' wheel ninja psutil 'numpy>=1.24' packaging opencv-python-headless
    local key wheels
    # a wheel fits one interpreter, one torch and one device kind
    key=$("$VENV/bin/python" -c 'import sys, torch; print("cp%d%d" % sys.version_info[:2], "torch" + torch.__version__, "cuda" if torch.cuda.is_available() else "cpu", sep="-")')
    wheels=$CACHE/mmcv/$key
    ls "$wheels"/mmcv-"$MMCV"-*.whl >/dev/null 2>&1 || build_mmcv_wheel "$wheels"
    install 'mmengine>=0.11.0rc3,<1' addict Pillow yapf
    "$VENV/bin/python" -m pip uninstall --yes --quiet mmcv-lite 2>/dev/null  # of a small environment; owns the same files
    install --force-reinstall --no-deps "$wheels"/mmcv-"$MMCV"-*.whl
    has "from mmcv.ops import nms" || die "mmcv was installed, but its compiled operators do not load" \
        "rm -r $wheels and run again, so that it is compiled for this torch"
}

install_lite() {
    has "from importlib.metadata import version; version('densevlm_mm'); import mmengine, mmcv, open_clip" && return
    say "densevlm_mm with MMEngine and the pure Python half of mmcv"
    install 'setuptools<81' wheel 'mmengine>=0.11.0rc3,<1' addict Pillow yapf packaging opencv-python-headless
    # by itself it would ask for an OpenCV that needs display libraries
    install --no-deps "mmcv-lite==$MMCV"
    install --no-build-isolation --editable "$ROOT"
}

install_package() {
    local stamp=$VENV/.densevlm_mm_installed want
    want=$(cat "$ROOT/setup.py" "$ROOT/pyproject.toml" | cksum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && has "import densevlm_mm, mmdet, mmseg, open_clip, pytest" && return
    say "densevlm_mm with MMDetection, MMSegmentation, open_clip and the test tools"
    install --no-build-isolation --editable "$ROOT[openmmlab,dev]"
    echo "$want" >"$stamp"
}

case "${1:-}" in '' | --lite) ;; *) die "unknown argument $1" "bash tools/setup_env.sh [--lite]" ;; esac
check_tools
make_venv
install_torch
if [ "${1:-}" = --lite ]; then
    install_lite
else
    install_mmcv
    install_package
fi
say "ready: $VENV"
