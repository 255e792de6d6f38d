#!/usr/bin/env bash
# Whole jobs on a machine with an NVIDIA GPU, on the GPU and on its cores alone. usage: benches/gpu_whole_job.sh CALIB SHARED [OLD]
# CALIB is a release binary, SHARED holds models/ and imagenet/, OLD is an older binary to compare with. ORT_DYLIB_PATH names the
# libonnxruntime.so of onnxruntime-gpu; its CUDA libraries must be found (LD_LIBRARY_PATH). OUT (a new folder) keeps the reports.
# ROUNDS (2) of every job; takes about five minutes on an H200 with 16 cores.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2s/.*usage: /usage: /p' "$0" >&2; exit 2; }
calib=$(realpath "$1") shared=$(realpath "$2") rounds=${ROUNDS:-2} out=${OUT:-$(mktemp -d)}
against=()
[ $# -lt 3 ] || against=(--against "$(realpath "$3")")
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
nproc
"$calib" doctor || true
photos="$shared/imagenet" model="$shared/models/efficientnet_lite0.onnx"
for provider in cuda cpu; do
  echo "== stages on $provider"
  "$calib" run --timings --model "$model" --data "$photos" --labels "$photos/labels.csv" --preset imagenet-lite \
    --calib-samples 100 --eval-samples 400 --provider "$provider" --tensorrt off --bench-seconds 3 --out "$out/$provider"
  "$calib" calibrate --timings --model "$model" --data "$photos" --preset imagenet-lite --calib-samples 100 \
    --provider "$provider" -o "$out/$provider.json"
  "$calib" bisect --timings --model "$model" --data "$photos" --labels "$photos/labels.csv" --preset imagenet-lite \
    --calib-samples 100 --provider "$provider" --tensorrt off --gate top1=0.9 --out "$out/bisect-$provider"
done
for provider in cuda cpu; do
  echo "== whole jobs on $provider"
  python3 "$here/whole_job.py" "$calib" "$shared" --provider "$provider" --rounds "$rounds" --many "${against[@]}"
done
