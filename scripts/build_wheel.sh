#!/usr/bin/env bash
# Builds the wheel into a folder and checks it: scripts/build_wheel.sh FOLDER [options of maturin]
set -euo pipefail
cd "$(dirname "$0")/.."
tools=.runtime/wheel-tools
pins="maturin==1.16.0 auditwheel==6.8.2 abi3audit==0.0.26"
if [ "$(cat "$tools/pins" 2>/dev/null)" != "$pins" ]; then
    [ -x "$tools/bin/python" ] || python3 -m venv "$tools"
    # shellcheck disable=SC2086 # several words
    "$tools/bin/pip" install -q $pins
    echo "$pins" > "$tools/pins"
fi
folder=$1
shift
"$tools/bin/maturin" build "$@" -m python/Cargo.toml -o "$folder"
newest=$(ls -t "$folder"/trtcalib-*.whl | head -n 1)
"$tools/bin/python" scripts/check_wheel.py "$newest"
