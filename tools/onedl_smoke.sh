#!/usr/bin/env bash
# Makes (or completes) an environment of its own with OneDL's forks of the OpenMMLab packages, installs this checkout
# into it, editable, and runs tools/misc/smoke.py there. The forks take the import names of the originals, so they
# must never share an environment with them.
#
#   bash tools/onedl_smoke.sh [OPTIONS OF smoke.py]
#
# Safe to re-run: finished steps are recognised and skipped. Environment variables:
#   PYTHON                interpreter to start from                 (default: python3, else python3.10 .. python3.12)
#   DENSEVLM_ONEDL_VENV   where the environment goes                (default: <checkout>/.venv-onedl)
#   DENSEVLM_CACHE        where the compiled mmcv wheel is kept     (default: ${XDG_CACHE_HOME:-~/.cache}/densevlm_mm)
#   MAX_JOBS              compiler processes for mmcv               (default: number of cores)
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${DENSEVLM_ONEDL_VENV:-$ROOT/.venv-onedl}
CACHE=${DENSEVLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/densevlm_mm}
TORCH=2.11.0 TORCHVISION=0.26.0
MMENGINE=0.10.12 MMCV=2.3.6 MMDET=3.5.1 MMSEG=1.4.2

say() { printf '\033[1m[onedl %4ds]\033[0m %s\n' "$SECONDS" "$*"; }
die() { printf '\n[onedl] cannot go on: %s\n' "$1" >&2; shift; printf '  remedy: %s\n' "$@" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
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
    local folder=$VENV free
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(df -Pk "$folder" | awk 'NR==2 {print int($4 / 1048576)}')
    [ -x "$VENV/bin/python" ] || [ "$free" -ge 8 ] || die "only $free GiB free at $folder; the environment takes about 7" \
        "free some disk space, or set DENSEVLM_ONEDL_VENV to a folder on another disk"
}

check_compiler() {
    command -v g++ >/dev/null 2>&1 || die "mmcv has to be compiled once and there is no C++ compiler" "apt-get install g++"
    [ -f "$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h" ] \
        || die "the Python headers are missing" "apt-get install python3-dev"
}

has() { "$VENV/bin/python" -c "$1" >/dev/null 2>&1; }

has_version() { has "from importlib.metadata import version; assert version('$1') == '$2'"; }

install() {
    "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --progress-bar off "$@" \
        || die "pip could not install: $*" "see pip's message above; check the network or the package index (PIP_INDEX_URL)"
}

make_venv() {
    [ -x "$VENV/bin/python" ] && return
    say "virtual environment in $VENV ($("$PY" --version))"
    "$PY" -m venv "$VENV" || { rm -rf "$VENV"; die "python -m venv failed" "apt-get install python3-venv"; }
}

refuse_originals() {
    has 'from importlib.metadata import packages_distributions as owners; names = {n for o in owners().values() for n in o}
assert not names & {"mmengine", "mmcv", "mmcv-lite", "mmdet", "mmsegmentation"}' \
        || die "$VENV holds original OpenMMLab packages, whose files the forks would overwrite" \
            "set DENSEVLM_ONEDL_VENV to a folder of its own, or remove $VENV"
}

install_torch() {
    has "import torch, torchvision; assert torch.__version__.split('+')[0] == '$TORCH'" && return
    say "torch $TORCH and torchvision $TORCHVISION (several GB, a few minutes)"
    install "torch==$TORCH" "torchvision==$TORCHVISION"
}

has_ops() {  # $1: a wheel; without MMCV_WITH_OPS or torch at build time, mmcv quietly makes one that lacks its operators
    "$VENV/bin/python" -c 'import sys, zipfile; sys.exit(not any("mmcv/_ext" in n for n in zipfile.ZipFile(sys.argv[1]).namelist()))' "$1"
}

build_mmcv_wheel() {  # $1: folder that receives the wheel
    check_compiler
    say "compiling onedl-mmcv $MMCV (once per user; this is the long part)"
    local scratch log status=0 pid
    mkdir -p "$1"
    scratch=$(mktemp -d "$1/.build.XXXXXX"); log=$scratch/log
    MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} "$VENV/bin/python" -m pip wheel --disable-pip-version-check --verbose \
        --no-build-isolation --no-deps --no-binary onedl-mmcv --no-cache-dir "onedl-mmcv==$MMCV" -w "$scratch" >"$log" 2>&1 &
    pid=$!
    trap 'kill $pid 2>/dev/null; rm -rf "$scratch"; exit 130' INT TERM
    while kill -0 $pid 2>/dev/null; do
        sleep 20
        say "  ... mmcv: $(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 || true)"
    done
    wait $pid || status=$?
    trap - INT TERM
    if [ $status -ne 0 ] || ! has_ops "$scratch"/onedl_mmcv-*.whl; then
        tail -n 40 "$log" >&2
        cp "$log" "$1/build.log"; rm -rf "$scratch"
        die "mmcv's compiled operators could not be built" "read $1/build.log; needs g++ >= 9, the Python headers and about 3 GB of memory per job (MAX_JOBS=1)"
    fi
    mv "$scratch"/onedl_mmcv-*.whl "$1/"
    rm -rf "$scratch"
}

install_mmcv() {
    has_version onedl-mmcv "$MMCV" && has 'import mmcv._ext' && return
    # older setuptools refuse the forks' pyproject.toml ("project.license must be valid exactly by one definition")
    install 'setuptools>=77,<82' wheel ninja psutil 'numpy>=2' packaging
    local key wheels
    # a wheel fits one interpreter, one torch and one device kind
    key=$("$VENV/bin/python" -c 'import sys, torch; print("cp%d%d" % sys.version_info[:2], "torch" + torch.__version__, "cuda" if torch.cuda.is_available() else "cpu", sep="-")')
    wheels=$CACHE/onedl-mmcv/$key
    ls "$wheels"/onedl_mmcv-"$MMCV"-*.whl >/dev/null 2>&1 || build_mmcv_wheel "$wheels"
    install "onedl-mmengine==$MMENGINE" "$wheels"/onedl_mmcv-"$MMCV"-*.whl
}

install_package() {
    local stamp=$VENV/.densevlm_mm_installed want
    want=$(cat "$ROOT/setup.py" "$ROOT/pyproject.toml" | cksum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && has "import densevlm_mm, mmdet, mmseg, open_clip" && return
    say "densevlm_mm with OneDL's MMDetection and MMSegmentation, and open_clip"
    install --no-build-isolation "onedl-mmdetection==$MMDET" "onedl-mmsegmentation==$MMSEG" --editable "$ROOT[onedl]"
    echo "$want" >"$stamp"
}

check_opencv() {
    has 'import cv2' && return
    # the forks ask for the OpenCV that needs display libraries; the headless one holds the same module without them
    say "opencv-python does not load here; opencv-python-headless takes its place"
    "$VENV/bin/python" -m pip uninstall --quiet --yes opencv-python
    install --force-reinstall --no-deps opencv-python-headless
    has 'import cv2' || die "OpenCV cannot be imported" "run $VENV/bin/python -c 'import cv2' and read its message"
}

check_tools
make_venv
refuse_originals
install_torch
install_mmcv
install_package
check_opencv
has "from mmcv.ops import nms" || die "mmcv was installed, but its compiled operators do not load" \
    "rm -r $CACHE/onedl-mmcv and run again, so that it is compiled for this torch"
say "ready: $VENV"
exec "$VENV/bin/python" "$ROOT/tools/misc/smoke.py" "$@"
