#!/usr/bin/env python3
"""Measures what docs/cluster.md quotes of Ray: two actors against one process on 500 photos, and that bytes are the same.

    python3 benches/ray_actors.py ../shared

The argument is a folder with models/efficientnet_lite0.onnx and imagenet/. Needs the wheel with its extra [ray], onnx and
Pillow. One thread a process; the same calls on four photos show what actors cost in any case. Prints rows of Markdown: the
time that passed and that of processors, the actors' and Ray's own among them.
"""

import json
import os
import pathlib
import sys
import tempfile
import threading
import time

import numpy as np
import photos
import ray
import ray.data
import trtcalib as tc
import trtcalib.ray as tr


class Spent:
    """Seconds of processors of this process and of all that it has started, also of those that have ended since."""

    def __init__(self):
        self._seen = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while True:
            self._look()
            time.sleep(0.25)

    def _look(self):
        rows = {}
        for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = file.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks = int(fields[11]) + int(fields[12])
            rows[int(file.parent.name)] = int(fields[1]), fields[19], ticks / os.sysconf("SC_CLK_TCK")
        family = {os.getpid()}
        while more := {process for process, (parent, *_) in rows.items() if parent in family} - family:
            family |= more
        self._seen |= {(process, rows[process][1]): rows[process][2] for process in family}

    def __call__(self):
        self._look()
        return sum(self._seen.values())


spent = Spent()


def timed(call):
    start, before = time.monotonic(), spent()
    result = call()
    return result, (time.monotonic() - start, spent() - before)


def measure(model, images, int8):
    """Seconds of one process and of two actors, for a table and for figures, which must have the same bytes."""
    dataset = ray.data.from_numpy(np.array_split(images, 4))
    one, two = {"threads": 1}, {"actors": 2, "num_cpus": 1}
    for method in ("minmax", "auto"):
        options = {"method": method, "samples": len(images)}
        table, alone = timed(lambda: tc.calibrate(model, images, **options, **one))
        spread, apart = timed(lambda: tr.calibrate(model, dataset, **options, **two))
        assert table.path.read_bytes() == spread.path.read_bytes()
        yield f"calibrate, `{method}`", alone, apart
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
_, (started, _) = timed(lambda: ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False))
ray.data.DataContext.get_current().enable_progress_bars = False
print(f"{len(pictures)} photos, {pictures.nbytes / 1e6:.0f} MB; Ray itself started in {started:.1f} s\n")
print("| step | photos | one process | two actors | ratio | processors | two actors | ratio |\n|---|---|---|---|---|---|---|---|")
with tempfile.TemporaryDirectory() as folder:
    # What only the first call costs is nobody's.
    list(measure(shared / "models/efficientnet_lite0.onnx", pictures[:4], pathlib.Path(folder) / "first.onnx"))
    for part in (pictures[:4], pictures):
        for step, alone, apart in measure(shared / "models/efficientnet_lite0.onnx", part, pathlib.Path(folder) / "int8.onnx"):
            figures = (f"{a:.1f} s | {b:.1f} s | {b / a:.2f}" for a, b in zip(alone, apart))
            print(f"| {step} | {len(part)} | {' | '.join(figures)} |", flush=True)
