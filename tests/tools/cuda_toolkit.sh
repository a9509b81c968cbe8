#!/usr/bin/env bash
# Puts what CUDA kernels are compiled with, NVRTC and its headers, and `ptxas`, which assembles them, into a cache directory and
# prints that directory, fit to be CUDA_PATH: cuda_toolkit.sh [--runtime-only]. It comes from PyPI, in wheels whose whole
# digests are pinned. With --runtime-only it is what a worker needs beside the driver: no `ptxas`. The second run needs no
# network.
set -euo pipefail

# PTX is refused by drivers older than the NVRTC that wrote it: 12.8 needs driver 570 or newer.
NVRTC=12.8.93
WHEELS=(
    "nvidia-cuda-nvrtc-cu12==$NVRTC --hash=sha256:a7756528852ef889772a84c6cd89d41dfa74667e24cca16bb31f8f061e3e9994"
    "nvidia-cuda-runtime-cu12==12.8.90 --hash=sha256:adade8dcbd0edf427b7204d480d6066d33902cab2a4707dcfc48a2d0fd44ab90"
    "nvidia-cuda-cccl-cu12==12.8.90 --hash=sha256:575bc5cfb0fe4a1956c539215c0f1e6718821b95a68ef6b7abf226aa87e3a5ad"
    # Not only for ptxas: crt/mma.h is in it.
    "nvidia-cuda-nvcc-cu12==12.8.93 --hash=sha256:2d6dc36fb7cb5ac9c0b8825bc13d193c35487a315664007287d0126531238011"
)
CACHE=${INFERQ_TOOLS_CACHE:-$HOME/.cache/inferq}/cuda

fail() {
    echo "cuda_toolkit: $1" >&2
    exit 1
}

case ${1:-} in
    "") KIND=full ;;
    --runtime-only) KIND=runtime ;;
    *) fail "usage: cuda_toolkit.sh [--runtime-only]" ;;
esac
TOOLKIT=$CACHE/$NVRTC-$KIND

if [ -f "$TOOLKIT/.complete" ]; then
    echo "$TOOLKIT"
    exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] || fail "the pinned wheels are for Linux on x86-64"
command -v python3 > /dev/null || fail "python3 is missing: apt install python3 python3-venv"
mkdir -p "$CACHE"
# In the cache's own folder, so that the rename at the end is atomic: two of us at once can't hurt each other.
WORK=$(mktemp -d "$CACHE/.fetch.XXXXXX")
trap 'rm -rf "$WORK"' EXIT INT TERM

PYTHON=python3
if ! python3 -m pip --version > /dev/null 2>&1; then
    python3 -m venv "$WORK/venv" > /dev/null 2>&1 || fail "python3 has neither pip nor venv: apt install python3-venv"
    PYTHON=$WORK/venv/bin/python
fi
echo "cuda_toolkit: downloading 132 MB from PyPI to $TOOLKIT" >&2
printf '%s\n' "${WHEELS[@]}" > "$WORK/requirements.txt"
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --dest "$WORK" --requirement "$WORK/requirements.txt" >&2 ||
    fail "the download failed: is there a way to PyPI, and are these the pinned files?"

"$PYTHON" - "$WORK" "$KIND" << 'PYTHON' || fail "the download is not a toolkit"
import os, pathlib, sys, zipfile

work, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
# Where a file goes that lies under nvidia/PACKAGE/ in its wheel; the rest stays there, most of all NVRTC's second build.
WANTED = ["include/", "lib/libnvrtc.so.12", "lib/libnvrtc-builtins.so.12."] + ["bin/ptxas"] * (kind == "full")
NEEDED = ["include/cuda_fp16.h", "include/cuda_bf16.h", "include/mma.h", "include/crt/mma.h", "include/cooperative_groups.h"]
NEEDED += ["include/cccl/cuda/barrier", "lib/libnvrtc.so.12", "LICENSE"] + ["bin/ptxas"] * (kind == "full")


def place(name):
    """The place in the toolkit of a file of a wheel, or nothing."""
    if name.endswith("License.txt"):
        return "LICENSE"
    parts = name.split("/", 2)
    if parts[0] != "nvidia" or len(parts) < 3 or name.endswith("__init__.py"):
        return None
    if not any(parts[2].startswith(wanted) for wanted in WANTED):
        return None
    # CUDA's installer puts these one deeper, and there cubecl looks for them.
    return parts[2].replace("include/", "include/cccl/", 1) if parts[1] == "cuda_cccl" else parts[2]


for wheel in sorted(work.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if not member.is_dir() and (name := place(member.filename)):
                target = work / "toolkit" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
missing = [name for name in NEEDED if not (work / "toolkit" / name).is_file()]
if missing:
    sys.exit(f"not in the wheels: {', '.join(missing)}")
if kind == "full":
    (work / "toolkit/bin/ptxas").chmod(0o755)
# cudarc tries this name first: without it another NVRTC of the system's would be taken.
os.symlink("libnvrtc.so.12", work / "toolkit/lib/libnvrtc.so")
(work / "toolkit/.complete").touch()
PYTHON

if [ -e "$TOOLKIT" ] && [ ! -f "$TOOLKIT/.complete" ]; then
    rm -rf "$TOOLKIT"
fi
mv -T "$WORK/toolkit" "$TOOLKIT" 2> /dev/null || [ -f "$TOOLKIT/.complete" ] || fail "$TOOLKIT can't be written"
echo "$TOOLKIT"
