#!/usr/bin/env bash
# Builds the wheel, checks its tags and its size, installs it into an empty environment, and runs the demonstration, the tests
# and the examples there.
# `--ray` runs the tests of Ray that take minutes, too.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf target/wheel-test
mkdir -p target/wheel-test
# The library itself is not optimized: ONNX Runtime does the work here, and compiling takes a third of the time.
export CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0
scripts/build_wheel.sh target/wheel-test -q --profile dev
# The check can fail: by this name the wheel would run on systems that it does not.
older=target/wheel-test/older/trtcalib-0.1.0-cp310-abi3-manylinux_2_5_$(uname -m).whl
mkdir "${older%/*}" && ln -s "../$(cd target/wheel-test && ls ./*.whl)" "$older"
if said=$(.runtime/wheel-tools/bin/python scripts/check_wheel.py "$older" 2>&1); then echo "a wrong tag was not noticed"; exit 1; fi
[[ $said == *"by its symbols auditwheel finds"* ]] || { echo "$said"; exit 1; }
python3 -m venv target/wheel-test/env
env=target/wheel-test/env/bin
"$env/pip" install -q target/wheel-test/*.whl
# With nothing but what the wheel depends on, and from another folder, so that the installed package is what runs.
(cd target/wheel-test && env/bin/calib doctor > doctor.txt && env/bin/calib demo demo -- --bench-seconds 0 --tensorrt off > demo.txt)
"$env/pip" install -q pytest onnx pillow mypy "ray[data]>=2.40"
root=$PWD
cd target/wheel-test
env/bin/mypy --python-executable env/bin/python --check-untyped-defs -p trtcalib
env/bin/python -m pytest -q -p no:cacheprovider "$root/python/tests" $([ "${1:-}" = --ray ] || echo "--ignore=$root/python/tests/test_ray_thorough.py")
