#!/usr/bin/env bash
# What `make test-engines` runs, and the unit tests of the backends, with the lines counted that they run of
# src/backend/tensorrt and src/backend/cuda (without their tests). All of it runs without a GPU, for both flavours.
#
#     rustup component add llvm-tools && scripts/coverage.sh [PERCENT]
#
# Fails where a test does, and below PERCENT (85). The CUDA C++ of the kernels is not counted: only a GPU runs it as it is.
set -euo pipefail

# Called by cargo in the compiler's place, for the packages of this workspace alone.
if [[ ${1:-} == */rustc || ${1:-} == rustc ]]; then exec "$@" -C instrument-coverage; fi

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
tools=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
[ -x "$tools/llvm-cov" ] || { echo "llvm-cov is missing; run: rustup component add llvm-tools" >&2; exit 2; }
tests/stand_in/build.sh
out=target/coverage
rm -rf "$out"
mkdir -p "$out"
# Unoptimized: a counter for each region, and built in a third of the time.
export CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=false
export RUSTC_WORKSPACE_WRAPPER=$here/coverage.sh LLVM_PROFILE_FILE=$PWD/$out/%4m.profraw
objects=()

covered() { # name, features, arguments of cargo test...; the test binary is kept as an object
    local name=$1 features=$2
    shift 2
    cargo test --features "$features" "$@" 2>&1 | tee "$out/$name.txt"
    objects+=(-object "$(sed -n 's/^ *Running .*(\(.*\))$/\1/p' "$out/$name.txt" | tail -1)")
}

LD_LIBRARY_PATH=$PWD/target/stand_in/cuda covered gpu tensorrt-rtx -p trtcalib --test gpu -- --ignored --test-threads=1 \
    magnitudes:: pairs:: values:: --skip a_large
step=1
for features in tensorrt-rtx tensorrt; do
    CALIB_FAULTS_STEP=$step covered "engines-$features" $features -p calib-cli --test engines
    step=20 # a fault in every node takes minutes, and runs no line that one fault does not: once is enough
    # The program of the other flavour takes its place.
    cp target/debug/calib "$out/calib-$features"
    objects+=(-object "$out/calib-$features")
done

# `make test` runs those of TensorRT-RTX; these also meet the lean runtime of TensorRT 11.
covered unit tensorrt -p trtcalib --lib backend::
rm -f target/debug/calib target/debug/compare # they would write counts wherever they are run

"$tools/llvm-profdata" merge -sparse "$out"/*.profraw -o "$out/all.profdata"
"$tools/llvm-cov" export -format=lcov -instr-profile "$out/all.profdata" "${objects[@]:1}" \
    -sources src/backend/tensorrt src/backend/cuda > "$out/all.lcov"
python3 "$here/coverage.py" "$out/all.lcov" "${1:-85}"
