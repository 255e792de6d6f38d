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
# Latency is measured for SECONDS_EACH on every precision; drawn weights need no more than a few samples, and no choice
# among methods, which would be one of chance.
options=(--precisions fp32,fp16,bf16,int8 --tensorrt "${TENSORRT:-off}" --bench-seconds "${SECONDS_EACH:-2}" -q --no-progress)
drawn=(--random-data --shape input=1x3x224x224 --calib-samples "${SAMPLES:-4}" --eval-samples "${SAMPLES:-4}" --method minmax
  --bias-correction off)
runs=()
run() { # NAME MODEL FLAGS...
  local name=$1 model=$2 start=$SECONDS
  "$calib" run --model "$model" "${@:3}" "${options[@]}" --out "$out/$name" >"$out/$name.log" 2>&1 \
    || { cat "$out/$name.log" >&2; exit 1; }
  runs+=("$out/$name")
  echo "$name: $((SECONDS - start)) s"
}
for name in "${names[@]}"; do
  model=${name%%.*}
  run "$model" "$out/onnx/$model.onnx" "${drawn[@]}"
done
if [ -f "$shared/models/efficientnet_lite0.onnx" ]; then
  run efficientnet_lite0 "$shared/models/efficientnet_lite0.onnx" --data "$shared/imagenet" \
    --labels "$shared/imagenet/labels.csv" --preset imagenet-lite --calib-samples 100
else
  echo "skipped: $shared does not hold models/efficientnet_lite0.onnx and imagenet/" >&2
fi
for ending in html csv md; do "$calib" report "${runs[@]}" -o "$out/models.$ending"; done
cat "$out/models.md"
