#!/usr/bin/env python3
"""Measures what docs/accuracy.md quotes: what each step of recovery brings, alone and left out, and what peers do.

    python3 benches/accuracy.py target/release/calib ../shared [PYTHON]

The second argument is a folder with models/efficientnet_lite0.onnx, models/yolox_nano.onnx, imagenet/ and coco/. Calibrates
on 100 photos (64 for the detector) and judges on the others. onnxruntime.quantization (this Python's) and Model Optimizer
(PYTHON's, with nvidia-modelopt[onnx]; left out without) calibrate on the same photos, and `calib compare` judges their models on
the same others. Prints rows of Markdown. Needs numpy, pillow, onnx and onnxruntime (scripts/requirements-test.txt).
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from photos import letterboxed, load

STEPS = ["biases", "ranges", "equalization", "shift", "descent", "rounding", "lifting", "compensation"]
VARIANTS = [
    ("methods alone", ["--effort", "off"]),
    *[(f"{step} alone", ["--effort", "default", "--recovery-steps", step]) for step in STEPS],
    *[(f"without {step}", ["--effort", "default", "--recovery-steps", ",".join(s for s in STEPS if s != step)]) for step in STEPS],
    ("shift of unpadded consumers", ["--effort", "default", "--shift", "unpadded"]),
    ("nothing lifted", ["--effort", "default", "--lift-budget", "0"]),
    ("for TensorRT, nothing lifted", ["--effort", "default", "--deploy-to", "tensorrt", "--lift-budget", "0"]),
    ("fast", ["--effort", "fast"]),
    ("default", ["--effort", "default"]),
    ("default, two nodes lifted", ["--effort", "default", "--lift-nodes", "2"]),
    ("thorough", ["--effort", "thorough"]),
    ("thorough, nothing lifted", ["--effort", "thorough", "--lift-budget", "0"]),
    ("thorough, for TensorRT, nothing lifted", ["--effort", "thorough", "--deploy-to", "tensorrt", "--lift-budget", "0"]),
]

# What a process of the peer's Python does: MODEL ARRAYS OUTPUT TOOL METHOD.
PEER = r"""
import sys
import numpy as np
model, arrays, output, tool, method = sys.argv[1:]
data = np.load(arrays)
if tool == "Model Optimizer":
    from modelopt.onnx.quantization import quantize
    quantize(model, quantize_mode="int8", calibration_data=dict(data), calibration_method=method, output_path=output)
else:
    import onnx, onnx.version_converter
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    loaded = onnx.load(model)
    if loaded.opset_import[0].version < 13:  # Its models of older opsets are invalid with weights by channel.
        model = output + ".13.onnx"
        onnx.save(onnx.version_converter.convert_version(loaded, 13), model)
    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rows = ({name: rows[i : i + 1] for name, rows in data.items()} for i in range(len(data[data.files[0]])))
        def get_next(self):
            return next(self.rows, None)
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "CalibPercentile": 99.99}
    quantize_static(model, output, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod[method], extra_options=options)
"""
PEERS = [
    ("onnxruntime", "MinMax"), ("onnxruntime", "Percentile"), ("onnxruntime", "Entropy"),
    ("Model Optimizer", "max"), ("Model Optimizer", "entropy"),
]


def run(calib, arguments):
    with tempfile.TemporaryDirectory() as folder:
        command = [calib, "run", *arguments, "--precisions", "int8", "--tensorrt", "off", "--bench-seconds", "0"]
        subprocess.run([*command, "--out", folder, "--no-progress", "-q"], check=True, stdout=subprocess.DEVNULL)
        return json.loads(pathlib.Path(folder, "report.json").read_text())


def figures(report):
    int8 = next(one for one in report["precisions"] if one["precision"] == "int8")
    recovery = report.get("recovery") or {"steps": [], "lifted": []}
    seconds = sum(step["seconds"] for step in recovery["steps"])
    return [*judged(int8), str(len(recovery["lifted"])), f"{seconds:.1f}"]


def judged(int8):
    sqnr = min(output["sqnr_db"] for output in int8["outputs"])
    row = [f"{sqnr:.2f}"]
    if agreement := int8.get("agreement"):
        row += [f"{agreement['top5_overlap']:.3f}", f"{agreement['top1']:.3f}"]
    if detection := int8.get("detection"):
        row += [f"{detection['map50_95']:.4f}", f"{detection['agreement']['recall']:.3f}"]
    return row


def peers(calib, python, arguments, photos, evaluate):
    """Rows of what the peers make of a model from `photos`, judged with the flags `evaluate`."""
    model = arguments[1]
    with tempfile.TemporaryDirectory() as folder:
        arrays, output = f"{folder}/photos.npz", f"{folder}/int8.onnx"
        np.savez(arrays, **photos)
        for tool, method in PEERS:
            if tool == "Model Optimizer" and python is None:
                continue
            interpreter = python if tool == "Model Optimizer" else sys.executable
            started = time.perf_counter()
            made = subprocess.run([interpreter, "-c", PEER, model, arrays, output, tool, method], capture_output=True, text=True)
            seconds = time.perf_counter() - started
            if made.returncode != 0:
                print(f"| {tool} {method} | fails: {made.stderr.strip().splitlines()[-1]} |", flush=True)
                continue
            command = [calib, "compare", "--ref", f"ort:{model}", "--target", f"ort:{output}", *evaluate, "--json", "--no-progress"]
            compared = subprocess.run(command, capture_output=True, text=True)
            if compared.returncode != 0:
                print(f"| {tool} {method} | cannot be run: {compared.stderr.strip().splitlines()[-1]} |", flush=True)
                continue
            found = json.loads(compared.stdout)
            result = found["targets"][0]["result"]
            result["agreement"] = next(iter(result.get("tasks") or [{}])).get("agreement")
            print(f"| {tool} {method} | {' | '.join(judged(result))} | – | {seconds:.1f} |", flush=True)


def main():
    calib, shared = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    python = sys.argv[3] if len(sys.argv) > 3 else None
    models = {
        "EfficientNet-Lite0: SQNR, top-5 overlap, top-1 agreement, lifted, seconds": [
            "--model", f"{shared}/models/efficientnet_lite0.onnx", "--data", f"{shared}/imagenet",
            "--preset", "imagenet-lite", "--calib-samples", "100",
        ],
        "YOLOX-Nano: SQNR, mAP, boxes found, lifted, seconds": [
            "--model", f"{shared}/models/yolox_nano.onnx", "--data", f"{shared}/coco/data.yaml",
            "--preset", "yolox", "--calib-samples", "64",
        ],
    }
    for name, arguments in models.items():
        print(f"\n{name}")
        for variant, flags in VARIANTS:
            report = run(calib, [*arguments, *flags])
            print(f"| {variant} | {' | '.join(figures(report))} |", flush=True)
        # The same photos for all: every variant has them.
        sets = report["dataset"]
        with tempfile.TemporaryDirectory() as folder:
            evaluated = pathlib.Path(folder, "evaluated.txt")
            if "yolox" in arguments[1]:
                images = shared / "coco"
                evaluated.write_text("".join(f"{images / photo}\n" for photo in sets["evaluation"]))
                names = (shared / "coco/data.yaml").read_text().split("names:")[1]
                described = pathlib.Path(folder, "data.yaml")
                described.write_text(f"path: {shared}/coco\ntrain: {evaluated}\nval: {evaluated}\nnames:{names}")
                photos = {"images": np.concatenate([letterboxed(images / photo) for photo in sets["calibration"]])}
                evaluate = ["--data", str(described), "--preset", "yolox"]
            else:
                evaluated.write_text("".join(f"{shared / 'imagenet' / photo}\n" for photo in sets["evaluation"]))
                photos = {"input": np.concatenate([load(shared / "imagenet", photo) for photo in sets["calibration"]])}
                evaluate = ["--data", str(evaluated), "--preset", "imagenet-lite"]
            peers(calib, python, arguments, photos, evaluate)


if __name__ == "__main__":
    main()
