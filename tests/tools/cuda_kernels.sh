#!/usr/bin/env bash
# Proves, without a card, that every CUDA kernel of a model compiles: cuda_kernels.sh BENCH_DEVICE MODEL. `bench_device` warms
# the model up, as a worker does before its first job, in each precision that a card has. It meets a pretend driver, in
# which launches do nothing, once for each of ARCHITECTURES ("75 80 89 90"), in its PRECISIONS; NVRTC compiles what it asks for,
# then ptxas assembles that. A line for each architecture on stdout; at the first fault it says what that is, leaves the folder with
# the sources, and fails. That kernels compute what they should, only a card can tell.
set -euo pipefail

say() { echo "cuda_kernels: $1" >&2; }
fail() {
    say "$1"
    exit 1
}

[ $# = 2 ] || fail "usage: cuda_kernels.sh BENCH_DEVICE MODEL"
program=$(realpath -e "$1") || fail "$1 is missing: make cuda"
model=$(realpath -e "$2") || fail "$2 is missing"
ARCHITECTURES=${ARCHITECTURES:-75 80 89 90}
# Which kernels there are hardly depends on the size of batches; how many times each is tried does.
BATCH_TOKENS=${BATCH_TOKENS:-512}
cd "$(dirname "$0")"

command -v cc > /dev/null || fail "cc is missing: apt install gcc libc6-dev"
toolkit=$(./cuda_toolkit.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What is wrong, the file that says more, and where else to look.
fault() {
    trap - EXIT
    say "sm_$sm: $1"
    head -n 40 "$2" >&2
    fail "${3:+its source is $3; }all is kept in $work"
}

mkdir "$work/driver"
cc -std=c11 -O1 -Wall -Wextra -Werror -shared -fPIC -o "$work/driver/libcuda.so" pretend_driver/driver.c -ldl
ln -s libcuda.so "$work/driver/libnvrtc.so"

# How many files there are of one kind.
count() { find "$out" -name "*.$1" | wc -l; }
# The first file of one kind, or nothing.
first() { find "$out" -name "*.$1" | sort | sed -n 1p; }

# Warms the model up in this precision; its kernels go to one folder, its words to a file.
warm_up() {
    local precision=$1 kernels=$2 said=$3
    # Its caches are in a folder of this run's own: what an earlier one has tuned or compiled must not be left out now.
    env -C "$out" HOME="$out" XDG_CACHE_HOME="$out" PRETEND_SM="$sm" PRETEND_PTX_DIR="$kernels" CUDA_PATH="$toolkit" \
        LD_LIBRARY_PATH="$work/driver:$toolkit/lib" \
        "$program" --model "$model" --device cuda:0 --precision "$precision" --replicas 1 \
        --max-batch-tokens "$BATCH_TOKENS" --cache-dir "$out/cache" < /dev/null > "$said" 2>&1 ||
        fault "$precision: bench_device failed, its last words:" <(tail -n 40 "$said")
}

# Warms the model up, and looks whether all that it asked of NVRTC and of the driver went well.
compile() {
    local said=$out/$1.output refused panics
    warm_up "$1" "$out" "$said"
    refused=$(first log)
    [ -z "$refused" ] || fault "$1: NVRTC refuses $(count log) kernels, first:" "$refused" "${refused%.log}.cu"
    [ ! -e "$out/refused" ] || fault "$1: a card would have refused:" <(sort "$out/refused" | uniq -c)
    # On a thread of cubecl's, this doesn't end the program, nor does anything else say it.
    panics=$(grep -A 20 "panicked at" "$said" || true)
    [ -z "$panics" ] || fault "$1: a panic:" <(echo "$panics")
    # It goes on to say that the answer is wrong, and there it is right.
    grep -q '"ready":true' "$said" || fault "$1: not warm, the last words:" <(tail -n 40 "$said")
}

# A second start finds what the first has compiled. What it runs follows from what was tuned, so a kernel or two may be new; and
# one is tried before any other.
start_again() {
    local again=$work/again_${sm}_$1 asked
    mkdir "$again"
    warm_up "$1" "$again" "$again/output"
    asked=$(find "$again" -name '*.cu' | wc -l)
    [ $((20 * asked)) -le "$(count cu)" ] ||
        fault "$1: of $(count cu) kernels a second start has $asked compiled again:" <(ls "$again"/*.cu)
}

# Assembles what was compiled, one file a processor at a time, and keeps what ptxas says.
assemble() {
    # The script is for the inner shell.
    # shellcheck disable=SC2016
    find "$out" -name '*.ptx' -print0 | xargs -0 -P "$(nproc)" -n 1 sh -c '
        "$0" -v -arch="$1" -o "${2%.ptx}.cubin" "$2" > "${2%.ptx}.assembled" 2>&1 || mv "${2%.ptx}.assembled" "${2%.ptx}.wrong"
    ' "$toolkit/bin/ptxas" "$target"
    local wrong
    wrong=$(first wrong)
    [ -z "$wrong" ] || fault "ptxas refuses $(count wrong) kernels, first:" "$wrong" "${wrong%.wrong}.cu"
    [ "$(count cubin)" -eq "$(count ptx)" ] || fault "of $(count ptx) kernels $(count cubin) were assembled" /dev/null
}

for sm in $ARCHITECTURES; do
    out=$work/sm_$sm
    mkdir "$out"
    # From Hopper on, cubecl compiles for the architecture's own instructions, which no later one has.
    target=sm_$sm$([ "$sm" -lt 90 ] || echo a)
    precisions=(f32 f16)
    # Turing has no bfloat16.
    [ "$sm" -lt 80 ] || precisions+=(bf16)
    [ -z "${PRECISIONS:-}" ] || read -ra precisions <<< "$PRECISIONS"
    first=0 again=0
    for precision in "${precisions[@]}"; do
        start=$SECONDS
        compile "$precision"
        first=$((first + SECONDS - start)) start=$SECONDS
        start_again "$precision"
        again=$((again + SECONDS - start))
    done
    compiled=$SECONDS
    [ "$(count ptx)" -gt 0 ] || fault "not one kernel was compiled" /dev/null
    other=$({ grep -L "^\.target $target\b" "$out"/*.ptx || true; } | sed -n 1p)
    [ -z "$other" ] || fault "a kernel is not for $target:" <(grep "^\.target" "$other") "${other%.ptx}.cu"
    assemble
    spilling=$({ grep -l "[1-9][0-9]* bytes spill stores" "$out"/*.assembled || true; } | wc -l)
    echo "$target: $(count ptx) kernels (${precisions[*]}) compiled in $first s, assembled in $((SECONDS - compiled)) s;" \
        "$spilling of them spill registers; second starts $again s"
done
