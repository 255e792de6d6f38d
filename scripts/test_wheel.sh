#!/usr/bin/env bash
# Builds the wheel (unoptimized, so that what the other tests built is used again), installs it into an empty
# environment, and runs its tests and examples.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=.runtime/wheel-tools
[ -x "$tools/bin/maturin" ] || { python3 -m venv "$tools"; "$tools/bin/pip" install -q "maturin==1.16.0"; }
rm -rf target/wheel-test
mkdir -p target/wheel-test
"$tools/bin/maturin" build -q --profile dev -m python/Cargo.toml -o target/wheel-test
python3 -m venv target/wheel-test/env
env=target/wheel-test/env/bin
"$env/pip" install -q target/wheel-test/*.whl pytest onnx pillow
"$env/calib" doctor > target/wheel-test/doctor.txt
# From another folder, so that the installed package is what is imported.
root=$PWD
cd target/wheel-test
env/bin/python -m pytest -q -p no:cacheprovider "$root/python/tests"
