#!/usr/bin/env bash
# Measures what docs/benchmarks.md quotes. usage: benches/run.sh [SHARED]
# SHARED holds models/efficientnet_lite0.onnx and imagenet/ (default: ../shared).
set -euo pipefail
cd "$(dirname "$0")/.."
shared=${1:-${CALIB_SHARED:-../shared}}
if [ ! -f "$shared/models/efficientnet_lite0.onnx" ]; then
  echo "skipped: $shared does not hold models/efficientnet_lite0.onnx and imagenet/" >&2
  exit 0
fi
export CALIB_SHARED=$(cd "$shared" && pwd) PYTHONPATH=$PWD/.runtime/python
export ORT_DYLIB_PATH=$(ls "$PWD"/.runtime/onnxruntime/libonnxruntime.so.* | head -1)
python3 benches/peers.py target/release/calib "$CALIB_SHARED"
for samples in 100 400; do
  target/release/calib calibrate -q --model "$CALIB_SHARED/models/efficientnet_lite0.onnx" --data "$CALIB_SHARED/imagenet" \
    --preset imagenet-lite --calib-samples "$samples" --method mse -o "$(mktemp -d)/table.json" --json |
    python3 -c "import json, sys; r = json.load(sys.stdin); print(f'{r[\"samples\"]} images: {r[\"seconds\"]:.1f} s, peak {r[\"peak_rss_bytes\"] / 2**20:.0f} MiB')"
done
cargo bench --bench calibrate
cargo bench --bench calibrate_model -- 4 100
if command -v polygraphy >/dev/null; then
  python3 benches/graphwise.py target/release/calib "$CALIB_SHARED"
else
  echo "skipped benches/graphwise.py: install polygraphy 0.53.6 with onnxruntime to compare with it" >&2
fi
