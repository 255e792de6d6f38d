#!/usr/bin/env bash
# Models x precisions in one table. usage: benches/models.sh [OUT [SHARED]]
# Five torchvision architectures with drawn weights (tests/fixtures/zoo) on random inputs, whose accuracy means nothing and is
# not measured, and EfficientNet-Lite0 with its own weights on photos where SHARED (default: ../shared) holds both.
# Leaves a run for each model in OUT (default: runs/models), and models.html, models.csv and models.md over all of them.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/models} shared=${2:-${CALIB_SHARED:-../shared}} calib=${CALIB:-target/release/calib}
names=(torchvision_resnet18.dynamo18 torchvision_mobilenet_v2.torchscript13.dynamic torchvision_mnasnet0_5.dynamo18
  torchvision_mobilenet_v3_small.torchscript17.dynamic torchvision_squeezenet1_1.torchscript11.dynamic)
mkdir -p "$out/onnx"
PYTHONPATH=$PWD/.runtime/python:$PWD/scripts python3 - "$out/onnx" "${names[@]}" <<'PYTHON'
import gzip, sys
import onnx, zoo_skeleton
for name in sys.argv[2:]:
    model = onnx.load_from_string(gzip.open(f"tests/fixtures/zoo/{name}.onnx.gz").read())
    zoo_skeleton.fill(model)
    onnx.save(model, f"{sys.argv[1]}/{name.split('.')[0]}.onnx")
PYTHON
options=(--precisions fp32,fp16,bf16,int8 --tensorrt "${TENSORRT:-off}" --bench-seconds "${SECONDS_EACH:-3}" -q --no-progress)
runs=()
for name in "${names[@]}"; do
  model=${name%%.*} runs+=("$out/${name%%.*}")
  "$calib" run --model "$out/onnx/$model.onnx" --random-data --shape input=1x3x224x224 \
    --calib-samples 16 --eval-samples 16 "${options[@]}" --out "$out/$model" >/dev/null
done
if [ -f "$shared/models/efficientnet_lite0.onnx" ]; then
  runs+=("$out/efficientnet_lite0")
  "$calib" run --model "$shared/models/efficientnet_lite0.onnx" --data "$shared/imagenet" --labels "$shared/imagenet/labels.csv" \
    --preset imagenet-lite --calib-samples 100 "${options[@]}" --out "$out/efficientnet_lite0" >/dev/null
else
  echo "skipped: $shared does not hold models/efficientnet_lite0.onnx and imagenet/" >&2
fi
for ending in html csv md; do "$calib" report "${runs[@]}" -o "$out/models.$ending"; done
