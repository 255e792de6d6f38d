#!/usr/bin/env python3
"""Whole jobs as a user waits for them: process start to exit, all sides in turns, medians.

usage: whole_job.py CALIB SHARED [--against OLD] [--rounds N] [--provider cpu|cuda] [--many] [--jobs REGEX]

CALIB is the release binary, SHARED the folder with models/efficientnet_lite0.onnx, models/yolox_nano.onnx, imagenet/ and coco/.
Every round runs every job once, each in a process of its own: calibrations of 100 photos, `run` on 100 + 400, a bisection
for a gate that passes, and onnxruntime's quantize_static with min-max (decoding and writing the model included, as in
calib's). --against runs the same jobs with an older binary, in the same rounds. --many adds a run over the 500 photos under
ten names (5,000 files), with its rate and peak memory beside those of the 500. Busy machines: the CPU seconds say more
than the wall time, ratios more than either.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time

# What runs in processes of its own finds photos.py.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH")]))

PEER = r"""
import sys
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from photos import Reader
model, folder, output, *names = sys.argv[1:]
quantize_static(model, output, Reader(folder, names), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True})
"""
PEER_NAME = "onnxruntime quantize_static, min-max"


def median_of(values) -> float:
    """The middle of the values. `statistics` here is the script beside this one."""
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def timed(command: list[str]) -> dict:
    """Wall time, CPU time and peak memory of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode > 1:
        sys.exit(f"{' '.join(command)}\n{message[-2000:]}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def jobs_of(calib: str, shared: str, provider: str, out: str, effort: bool) -> dict[str, list[str]]:
    """The commands of one binary, by name."""
    model, photos = f"{shared}/models/efficientnet_lite0.onnx", f"{shared}/imagenet"
    data = ["--model", model, "--data", photos, "--labels", f"{photos}/labels.csv", "--preset", "imagenet-lite",
            "--calib-samples", "100", "--provider", provider, "-q"]
    table = ["-o", f"{out}/table.json"]
    whole = ["--tensorrt", "off", "--out"]
    jobs = {
        "calibrate, min-max alone": ["calibrate", *data, *table, "--method", "minmax", "--bias-correction", "off"],
        "calibrate, defaults": ["calibrate", *data, *table],
        "run, no latency": ["run", *data, "--eval-samples", "400", "--bench-seconds", "0", *whole, f"{out}/run"],
        "run, 3 s a target": ["run", *data, "--eval-samples", "400", "--bench-seconds", "3", *whole, f"{out}/bench"],
        "bisect, gate passes": ["bisect", *data, "--gate", "top1=0.9", *whole, f"{out}/bisect"],
    }
    if effort:
        jobs["calibrate, --effort fast"] = ["calibrate", *data, *table, "--effort", "fast"]
    yolox, coco = f"{shared}/models/yolox_nano.onnx", f"{shared}/coco"
    if os.path.isfile(yolox) and os.path.isdir(coco):
        detector = ["calibrate", "--model", yolox, "--data", f"{coco}/data.yaml", "--calib-samples", "128", "--provider",
                    provider, "-q", *table]
        jobs["calibrate YOLOX-Nano, 128 pictures, defaults"] = detector
        if effort:
            jobs["calibrate YOLOX-Nano, --effort fast"] = [*detector, "--effort", "fast"]
    return {name: [calib, *words] for name, words in jobs.items()}


# A model that does next to nothing, so that what is waited for is reading and decoding: TARGET.
IDLE = r"""
import sys
import onnx
from onnx import TensorProto, helper
shape = ["N", 3, 224, 224]
inputs, outputs = (helper.make_tensor_value_info(*of) for of in (("input", TensorProto.FLOAT, shape), ("out", TensorProto.FLOAT, ["N", 3, 1, 1])))
graph = helper.make_graph([helper.make_node("GlobalMaxPool", ["input"], ["out"])], "idle", [inputs], [outputs])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), sys.argv[1])
"""
# The photos as arrays, so that nothing is decoded: FOLDER PHOTOS NAME...
ARRAYS = r"""
import sys
import numpy as np
from photos import load
folder, photos, *names = sys.argv[1:]
for name in names:
    np.savez(f"{folder}/{name}.npz", input=load(photos, name))
"""


def many(calib: str, shared: str, provider: str, work: str) -> None:
    """500 photos, and the same under ten names: peak memory, and the rate of what the second takes longer, beside those of
    decoding alone and of forward passes alone."""
    photos = f"{shared}/imagenet"
    names = sorted(name for name in os.listdir(photos) if name.lower().endswith((".jpeg", ".jpg")))
    arrays, idle = tempfile.mkdtemp(dir=work), f"{work}/idle.onnx"
    subprocess.run([sys.executable, "-c", ARRAYS, arrays, photos, *names], check=True)
    subprocess.run([sys.executable, "-c", IDLE, idle], check=True)
    preset, where = ["--preset", "imagenet-lite"], ["-q", "--provider", provider]
    run = ["run", *where, "--model", f"{shared}/models/efficientnet_lite0.onnx", "--calib-samples", "100", "--bench-seconds", "0",
           "--tensorrt", "off"]
    jobs = {
        "run": (photos, [*run, *preset]),
        "run on arrays: forward passes alone": (arrays, run),
        "compare a model of one node: decoding alone": (photos, ["compare", "-q", "--ref", idle, "--target", idle, *preset]),
    }
    print("\n| job | samples | wall s | peak MB | samples | wall s | peak MB | samples/s of the difference |\n|---|---|---|---|---|---|---|---|")
    rates = []
    for name, (source, words) in jobs.items():
        files = [file for file in os.listdir(source) if file.lower().endswith((".jpeg", ".jpg", ".npz"))]
        found = []
        for copies in (1, 10):
            data = tempfile.mkdtemp(dir=work)
            for file, copy in itertools.product(files, range(copies)):
                os.symlink(os.path.abspath(f"{source}/{file}"), f"{data}/{copy}_{file}")
            out = tempfile.mkdtemp(dir=work)
            into = ["--out", out] if words[0] == "run" else []
            found.append(timed([calib, *words, "--data", data, *into]))
            samples = len(json.load(open(f"{out}/report.json"))["dataset"]["evaluation"]) if into else len(os.listdir(data))
            found[-1]["samples"] = samples
        few, more = found
        rates.append((more["samples"] - few["samples"]) / (more["wall"] - few["wall"]))
        cells = [f"{one['samples']} | {one['wall']:.1f} | {one['peak_mb']:.0f}" for one in found]
        print(f"| {name} | {' | '.join(cells)} | {rates[-1]:.0f} |", flush=True)
    print(f"\nThe rate of `run` is {rates[0] / min(rates[1:]):.0%} of the slower of the two alone.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calib")
    parser.add_argument("shared")
    parser.add_argument("--against")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--jobs", default="")
    arguments = parser.parse_args()
    work = tempfile.mkdtemp()
    sides = {"": arguments.calib} | ({"before: ": arguments.against} if arguments.against else {})
    commands: dict[str, list[str]] = {}
    for label, calib in sides.items():
        out = tempfile.mkdtemp(dir=work)
        effort = "--effort" in subprocess.run([calib, "calibrate", "--help"], capture_output=True, text=True).stdout
        jobs = jobs_of(calib, arguments.shared, arguments.provider, out, effort)
        commands |= {label + name: words for name, words in jobs.items()}
    photos = f"{arguments.shared}/imagenet"
    names = sorted(name for name in os.listdir(photos) if name.endswith(".JPEG"))
    try:
        import onnxruntime.quantization  # noqa: F401

        commands[PEER_NAME] = [sys.executable, "-c", PEER, f"{arguments.shared}/models/efficientnet_lite0.onnx", photos,
                               f"{work}/peer.onnx", *names[:: max(1, len(names) // 100)][:100]]
    except ImportError:
        print("without onnxruntime in Python there is no peer to compare with", file=sys.stderr)
    commands = {name: words for name, words in commands.items() if re.search(arguments.jobs, name)}
    measured: dict[str, list[dict]] = {name: [] for name in commands}
    stages: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.rounds):
        for name, words in commands.items():
            measured[name].append(timed(words))
            report = os.path.join(words[words.index("--out") + 1], "report.json") if "--out" in words else ""
            if os.path.isfile(report):
                for stage in json.load(open(report)).get("timings", []):
                    stages.setdefault(name, {}).setdefault(stage["stage"], []).append(stage["seconds"])
    median = {name: {key: median_of(run[key] for run in runs) for key in runs[0]} for name, runs in measured.items()}
    peer = median.get(PEER_NAME)
    print(f"{arguments.rounds} rounds, provider {arguments.provider}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| job | wall s | CPU s | peak MB | CPU against the peer | CPU against before | wall against before |")
    print("|---|---|---|---|---|---|---|")
    for name, found in median.items():
        before = median.get("before: " + name)
        ratio = lambda other, key: f"{found[key] / other[key]:.2f}" if other else ""
        print(f"| {name} | {found['wall']:.2f} | {found['cpu']:.2f} | {found['peak_mb']:.0f} | {ratio(peer, 'cpu')} | "
              f"{ratio(before, 'cpu')} | {ratio(before, 'wall')} |")
    for name, seconds in stages.items():
        row = ", ".join(f"{stage} {median_of(times):.2f}" for stage, times in seconds.items())
        print(f"\n{name}: {row}")
    if arguments.many:
        many(arguments.calib, arguments.shared, arguments.provider, work)


if __name__ == "__main__":
    main()
