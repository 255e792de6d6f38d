#!/usr/bin/env python3
"""Measures what docs/cluster.md quotes of Ray: two actors against one process on 500 photos, and that bytes are the same.

    python3 benches/ray_actors.py ../shared

The argument is a folder with models/efficientnet_lite0.onnx and imagenet/. Needs the wheel with its extra [ray], onnx and
Pillow. One thread a process; the same calls on four photos show what actors cost in any case. Prints rows of Markdown.
"""

import json
import pathlib
import sys
import tempfile
import time

import numpy as np
import photos
import ray
import ray.data
import trtcalib as tc
import trtcalib.ray as tr


def timed(call):
    start = time.monotonic()
    result = call()
    return result, time.monotonic() - start


def measure(model, images, int8):
    """Seconds of one process and of two actors, for a table and for figures, which must have the same bytes."""
    dataset = ray.data.from_numpy(np.array_split(images, 4))
    one, two = {"threads": 1}, {"actors": 2, "num_cpus": 1}
    table, alone = timed(lambda: tc.calibrate(model, images, method="minmax", samples=len(images), **one))
    spread, apart = timed(lambda: tr.calibrate(model, dataset, method="minmax", samples=len(images), **two))
    assert table.to_dict() == spread.to_dict() and table.path.read_bytes() == spread.path.read_bytes()
    yield "calibrate", alone, apart
    if not int8.exists():
        tc.quantize(model, table, int8)
    everything = {"calibration_samples": True}
    figures, alone = timed(lambda: tc.compare(model, int8, images, **one, **everything))
    spread, apart = timed(lambda: tr.compare(model, int8, dataset, **two, **everything))
    assert json.dumps(figures.to_dict()) == json.dumps(spread.to_dict()) and figures["samples"] == len(images)
    yield "compare", alone, apart


shared = pathlib.Path(sys.argv[1]).resolve()
files = sorted(file.name for file in (shared / "imagenet").glob("*.JPEG"))[:500]
pictures = np.concatenate([photos.load(shared / "imagenet", name) for name in files])
_, started = timed(lambda: ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False))
ray.data.DataContext.get_current().enable_progress_bars = False
print(f"{len(pictures)} photos, {pictures.nbytes / 1e6:.0f} MB; Ray itself started in {started:.1f} s\n")
print("| step | photos | one process | two actors | ratio |\n|---|---|---|---|---|")
with tempfile.TemporaryDirectory() as folder:
    # What only the first call costs is nobody's.
    list(measure(shared / "models/efficientnet_lite0.onnx", pictures[:4], pathlib.Path(folder) / "first.onnx"))
    for part in (pictures[:4], pictures):
        for step, alone, apart in measure(shared / "models/efficientnet_lite0.onnx", part, pathlib.Path(folder) / "int8.onnx"):
            print(f"| {step} | {len(part)} | {alone:.1f} s | {apart:.1f} s | {apart / alone:.2f} |", flush=True)
