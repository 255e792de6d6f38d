#!/usr/bin/env bash
# Builds the stand-ins for TensorRT (both flavours) and the CUDA driver into target/stand_in/, unless they are there.
# Needs g++ and Python, and the headers that the crate trtx-sys carries.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
out=${1:-$project/target/stand_in}
newest=$(find "$here" "$project/src/backend/cuda" -name '*.cpp' -newer "$out/done" -o -name '*.h' -newer "$out/done" \
    -o -name '*.cu' -newer "$out/done" -o -name '*.py' -newer "$out/done" -o -name build.sh -newer "$out/done" 2>/dev/null || echo none)
if [ -e "$out/done" ] && [ -z "$newest" ]; then exit 0; fi
crate=$(cd "$project" && cargo metadata --format-version 1 --locked --filter-platform "$(rustc -vV | sed -n "s/^host: //p")" --features tensorrt-rtx |
    python3 -c 'import json, sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "trtx-sys"))')
headers=$(dirname "$crate")/TensorRT-Headers
runtime=$(find "$project/.runtime/onnxruntime" -maxdepth 1 -name 'libonnxruntime.so.*' | sort | tail -1)
[ -n "$runtime" ] || { echo "ONNX Runtime is missing; run make setup" >&2; exit 1; }

# NVIDIA's compiler library brings a C++ library of its own, which must not meet ours.
flags=(-std=c++20 -O1 -g -fPIC -fvisibility=hidden -fno-gnu-unique -static-libstdc++ -static-libgcc -Wl,--version-script="$out/exports" -Wall -Wextra -Werror -Wno-unused-parameter -Wno-deprecated-declarations
    -I"$here" -shared)
mkdir -p "$out/cuda" "$out/rtx" "$out/11" "$out/sources"
echo '{ global: cu*; create*; getInferLibVersion; getNvOnnxParserVersion; stand_in_*; local: *; };' > "$out/exports"

# The kernels themselves, as C++: without CUDA's linkage and the one instruction that they all need.
for name in pairs magnitudes; do
    instruction='asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));'
    grep -qF "$instruction" "$project/src/backend/cuda/$name.cu"
    sed -e 's/^extern "C" //' -e 's/asm("cvt.f32.f16 .*/x = from_half(bits);/' "$project/src/backend/cuda/$name.cu" > "$out/sources/$name.inc"
done
g++ "${flags[@]}" -Wno-unused-function -Wno-unknown-pragmas -Wno-sign-compare -I"$out/sources" -Wl,-soname,libcuda.so.1 \
    -o "$out/cuda/libcuda.so.1" "$here"/{driver,memory,kernels}.cpp &

build() { # folder, headers, library, parser
    mkdir -p "$out/sources/$1"
    python3 "$here/refusals.py" "$headers/$2" > "$out/sources/$1/refusals.h"
    local own=("${flags[@]}" -I"$out/sources/$1" -isystem "$headers/$2" -isystem "$headers" -DORT_LIBRARY="\"$runtime\"")
    g++ "${own[@]}" -Wl,-soname,"$3" -o "$out/$1/$3" "$here"/{tensorrt,inference,layers,onnx,plan}.cpp
    g++ "${own[@]}" -Wl,-soname,"$4" -Wl,-rpath,'$ORIGIN' -o "$out/$1/$4" "$here"/{parser,onnx}.cpp "$out/$1/$3"
    g++ -std=c++20 -O1 -Wno-deprecated-declarations -I"$here" -isystem "$headers/$2" -isystem "$headers" \
        -DLIBRARY="\"$out/$1/$3\"" -o "$out/$1/misuse" "$here/misuse.cpp"
}
build rtx TRT-RTX-1.7 libtensorrt_rtx.so.1 libtensorrt_onnxparser_rtx.so.1
build 11 TRT-Enterprise-11.4 libnvinfer.so.11 libnvonnxparser.so.11
wait -n
touch "$out/done"
