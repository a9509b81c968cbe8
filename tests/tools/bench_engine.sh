#!/bin/sh
# Runs the engine's benchmark: the table on stdout, the raw figures in target/bench/engine.json. With PEERS=1 also
# onnxruntime with as many threads, in turn in the same run, from a virtual environment under the target folder.
# THREADS (2), ROUNDS (7) and KERNELS (own or burn) are passed on.
set -eu

cd "$(dirname "$0")/../.."
TARGET=${CARGO_TARGET_DIR:-target}
THREADS=${THREADS:-2}
export THREADS
INFERQ_TEST_MODEL=${INFERQ_TEST_MODEL:-$(tests/tools/fetch_model.sh)}
export INFERQ_TEST_MODEL

cargo build --release --quiet --workspace
mkdir -p "$TARGET/bench"

if [ "${PEERS:-0}" = 1 ]; then
    VENV=$TARGET/bench/venv
    if [ ! -f "$VENV/.complete" ]; then
        python3 -m venv "$VENV" || { echo "bench_engine: no venv: apt install python3-venv" >&2; exit 1; }
        "$VENV/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0
        touch "$VENV/.complete"
    fi
    # The benchmark gives it to a shell, which reads the quotes.
    # shellcheck disable=SC2089,SC2090
    PEER="'$VENV/bin/python' tests/tools/onnxruntime_peer.py '$INFERQ_TEST_MODEL' $THREADS"
    # shellcheck disable=SC2090
    export PEER
fi

OUT=$TARGET/bench/engine.json "$TARGET/release/bench_engine"
