#!/usr/bin/env bash
# What only a real engine can show, in about ten minutes: builds, inspects, compares, times and bisects the embedded model,
# two EfficientNets with made-up weights, and any other model that is named, in every precision on this machine's GPU, and
# leaves one archive to attach to a report.
#
#     scripts/try_tensorrt.sh [--calib PROGRAM] [--out FOLDER] [--seconds N] [--only-embedded] [MODEL.onnx DATA]...
#
# Needs a calib with TensorRT (make build, or make build TENSORRT=11 with CALIB_TENSORRT_DIR set) and an NVIDIA GPU; for the
# EfficientNets the Python packages that `make setup-test` fetches.
set -uo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
calib=$project/target/release/calib out=$PWD/try_tensorrt seconds=2 efficientnets=(timm_tf_efficientnet_lite0 torchvision_efficientnet_b0)
while [[ ${1:-} == --* ]]; do
    case $1 in
    --calib) calib=$2 && shift ;;
    --out) out=$2 && shift ;;
    --seconds) seconds=$2 && shift ;;
    --only-embedded) efficientnets=() ;;
    --help) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
    esac
    shift
done
(($# % 2 == 0)) || { echo "each model needs its data behind it: MODEL.onnx DATA" >&2; exit 2; }
[ -x "$calib" ] || { echo "there is no $calib; run make build, or name the program with --calib" >&2; exit 2; }
out=$(realpath -m -- "$out")
# Only what an earlier call left is replaced.
if [ -e "$out" ] && [ ! -e "$out/steps.txt" ] && [ -n "$(ls -A "$out" 2>&1)" ]; then
    echo "$out is there already and not of this script; name another folder with --out" >&2
    exit 2
fi
mkdir -p "$out"
find "$out" -mindepth 1 -delete
: > "$out/steps.txt"
: > "$out/left_out.txt"
failed=0

# Runs a step with everything it says in a file; goes on after a failure, for what fails is what the archive is for.
step() { # name, command...
    local name=$1 status=0
    shift
    printf '%-44s' "$name"
    { echo "\$ $*"; "$@" < /dev/null; } > "$out/$name.txt" 2>&1 || status=$?
    if [ $status -eq 0 ]; then echo passed; else echo "FAILED (exit status $status; $name.txt)"; failed=$((failed + 1)); fi
    echo "$name $status" >> "$out/steps.txt"
}

# Times an engine at batches 1 and 8, or, where the engine or the data has none of these, at the batch that it usually gets.
timed() { # name, arguments of calib bench...
    local name=$1 said=$out/said.log status=0 refusal
    shift
    "$calib" bench "$@" --batch 1,8 2> "$said" || status=$?
    cat "$said" >&2
    refusal=$(grep '^error' "$said")
    rm "$said"
    if [ $status -eq 0 ]; then return; fi
    "$calib" bench "$@" && echo "$name: batches 1 and 8 are not timed, but the usual one: $refusal" >> "$out/left_out.txt"
}

{
    date -u
    "$calib" --version
    git -C "$project" rev-parse HEAD 2>/dev/null
    uname -srm
    nvidia-smi 2>&1 | head -20
} > "$out/machine.txt"
step doctor "$calib" doctor

images=$project/calib_data/images
models=("$project/calib_data/demo.onnx" "$images")
fill='import gzip, sys, onnx, zoo_skeleton
model = onnx.load_from_string(gzip.open(sys.argv[1]).read())
zoo_skeleton.fill(model)
onnx.save(model, sys.argv[2])'
for name in "${efficientnets[@]}"; do
    skeleton=$(echo "$project/tests/fixtures/zoo/$name".*.onnx.gz)
    PYTHONPATH=$project/.runtime/python:$project/scripts step "$name-make" python3 -c "$fill" "$skeleton" "$out/$name.onnx"
    if [ -e "$out/$name.onnx" ]; then models+=("$out/$name.onnx" "$images"); fi
done
models+=("$@")
for ((i = 0; i + 1 < ${#models[@]}; i += 2)); do
    model=${models[i]} data=${models[i + 1]}
    name=$(basename "$model" .onnx)
    # Models of one file name are told apart by their number.
    if [ -e "$out/$name-run.txt" ]; then name=$name-$((i / 2 + 1)); fi
    work=$out/$name
    # No gates: not every model has classes, and what the figures are worth is for those who read them.
    step "$name-run" "$calib" run --model "$model" --data "$data" --out "$work" --tensorrt require \
        --precisions fp32,fp16,bf16,int8,fp8 --calib-samples 64 --eval-samples 100 --bench-seconds "$seconds"
    for precision in fp32 fp16 bf16 int8 fp8; do
        plan=$work/engines/$precision.plan
        if [ ! -e "$plan" ]; then
            echo "$name-$precision: there is no engine; $name-run.txt says why" >> "$out/left_out.txt"
            continue
        fi
        step "$name-$precision-inspect" "$calib" inspect --all --json "$plan"
        step "$name-$precision-compare" "$calib" compare --ref "ort:$model" --target "$plan" --model "$model" --data "$data" --samples 50 --json
        step "$name-$precision-bench" timed "$name-$precision-bench" "trt:$plan" --model "$model" --data "$data" --cuda-graph --layer-times \
            --seconds "$seconds" --json
        step "$name-$precision-bisect" "$calib" bisect --target "$plan" --find first --threshold-db 20 --model "$model" --data "$data" \
            --samples 8 --out "$work/bisect-$precision"
    done
done

archive=$out.tar.gz
# Logs and reports, and nothing that holds a model: weights beside an ONNX file and kernels have endings of their own.
(cd "$(dirname "$out")" && find "$(basename "$out")" -type f \( -name '*.txt' -o -name '*.json' -o -name '*.toml' -o -name '*.html' \
    -o -name '*.xml' -o -name '*.csv' -o -name '*.md' \) -print0) | tar -czf "$archive" -C "$(dirname "$out")" --null -T -
left_out=$(wc -l < "$out/left_out.txt")
[ "$left_out" -eq 0 ] || cat "$out/left_out.txt"
echo "$(wc -l < "$out/steps.txt") steps, $failed failed, $left_out left out (left_out.txt); attach $archive to the report (it holds no model and no engine)"
exit $((failed > 0))
