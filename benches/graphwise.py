#!/usr/bin/env python3
"""Every tensor of EfficientNet-Lite0 in INT8 against float, on 20 images: calib and Polygraphy, one after the other.

usage: graphwise.py CALIB SHARED [POLYGRAPHY]

CALIB is the release binary, SHARED the folder with models/efficientnet_lite0.onnx and imagenet/. POLYGRAPHY is the
program (default: polygraphy on the PATH), with onnxruntime beside it. Both compare the model that calib quantized, in
ONNX Runtime on the CPU. calib's time includes reading the images; Polygraphy gets random inputs of the same shape.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMAGES = 20
LOADER = f"""
import numpy as np
def load_data():
    random = np.random.default_rng(0)
    for _ in range({IMAGES}):
        yield {{"input": random.standard_normal((1, 3, 224, 224), dtype=np.float32)}}
"""


def measure(name, command, folder):
    started = time.perf_counter()
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    # Polygraphy exits with 1 when tensors differ, which they do.
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        sys.exit(f"{name} failed:\n" + (folder / "log.txt").read_text(errors="replace")[-2000:])
    print(f"{name:<28} {seconds:7.1f} s  {usage.ru_maxrss / 1024:7.0f} MiB")
    return seconds


def main():
    calib, shared = sys.argv[1], Path(sys.argv[2])
    polygraphy = sys.argv[3] if len(sys.argv) > 3 else "polygraphy"
    model, images = str(shared / "models/efficientnet_lite0.onnx"), str(shared / "imagenet")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table, quantized = str(folder / "table.json"), str(folder / "int8.onnx")
        data = ["--data", images, "--preset", "imagenet-lite"]
        subprocess.run(
            [calib, "calibrate", "-q", "--model", model, *data, "--calib-samples", "100", "--method", "minmax", "-o", table],
            check=True,
        )
        subprocess.run([calib, "quantize", "-q", "--model", model, "--table", table, "-o", quantized], check=True)
        command = [calib, "bisect", "--model", model, *data, "--table", table, "--find", "tensors"]
        command += ["--calib-samples", "100", "--samples", str(IMAGES), "--out", str(folder)]
        ours = measure("calib, both models", command, folder)

        loader = folder / "loader.py"
        loader.write_text(LOADER)
        saved = str(folder / "reference.json")
        common = ["--onnxrt", "--onnx-outputs", "mark", "all", "--data-loader-script", str(loader)]
        theirs = measure("polygraphy, save reference", [polygraphy, "run", model, *common, "--save-outputs", saved], folder)
        print(f"{'':<28} {os.path.getsize(saved) / 2**20:7.0f} MiB file")
        theirs += measure("polygraphy, compare", [polygraphy, "run", quantized, *common, "--load-outputs", saved], folder)
        print(f"calib is {theirs / ours:.0f} times as fast")


if __name__ == "__main__":
    main()
