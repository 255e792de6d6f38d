#!/usr/bin/env bash
# One process with all samples against a shard on each GPU. usage: benches/gpus.sh MODEL DATA [GPUS [OPTION...]]
# Calibrates MODEL with DATA on the first GPU, then in GPUS processes (default: as many as there are) of which each sees one GPU
# only, and merges. Fails unless both tables, and both histogram files, are the same to the byte; prints the times. OPTIONs go to
# every `calib calibrate` (--preset, --batch, --calib-samples, ...). CALIB names the binary, METHOD a method (mse), KEEP a
# folder for the files. PROVIDER=cpu tries it without a GPU.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2s/.*usage: /usage: /p' "$0" >&2; exit 2; }
calib=${CALIB:-target/release/calib} method=${METHOD:-mse} provider=${PROVIDER:-cuda}
model=$1 data=$2 count=${3:-$(nvidia-smi -L | wc -l)}
out=${KEEP:-$(mktemp -d)}
mkdir -p "$out"
[ -n "${KEEP:-}" ] || trap 'rm -rf "$out"' EXIT
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
else
  mapfile -t gpus < <(seq 0 $((count - 1)))
fi
[ "$count" -ge 1 ] && [ ${#gpus[@]} -ge "$count" ] || { echo "$count GPUs were asked for, ${#gpus[@]} can be seen" >&2; exit 2; }
options=(--model "$model" --data "$data" --provider "$provider" --method "$method" --bias-correction off -q --no-progress "${@:4}")

calibrate() { # GPU NAME OPTION...
  CUDA_VISIBLE_DEVICES=$1 "$calib" calibrate "${options[@]}" -o "$out/$2.json" --histograms "$out/$2.calib" "${@:3}" \
    >"$out/$2.log" 2>&1 || { cat "$out/$2.log" >&2; return 1; }
}

seconds() { # what has passed since $1
  awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.2f", to - from }'
}

start=$EPOCHREALTIME
calibrate "${gpus[0]}" whole
whole=$(seconds "$start")

start=$EPOCHREALTIME
shards=() processes=()
for i in $(seq 1 "$count"); do
  shards+=("$out/shard$i.calib")
  calibrate "${gpus[i - 1]}" "shard$i" --shard "$i/$count" &
  processes+=($!)
done
for process in "${processes[@]}"; do wait "$process"; done
parts=$(seconds "$start")
"$calib" merge "${shards[@]}" --method "$method" -o "$out/merged.json" --merged "$out/merged.calib" -q
merged=$(seconds "$start")

cmp "$out/whole.json" "$out/merged.json"
cmp "$out/whole.calib" "$out/merged.calib"
echo "whole run, one GPU: $whole s"
echo "$count shards, one GPU each: $parts s; merged after $merged s"
echo "both tables and both histogram files are the same to the byte"
