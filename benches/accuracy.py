#!/usr/bin/env python3
"""Measures what docs/accuracy.md quotes: what each step of recovery brings, alone and left out.

    python3 benches/accuracy.py target/release/calib ../shared

The second argument is a folder with models/efficientnet_lite0.onnx, models/yolox_nano.onnx, imagenet/ and coco/. Calibrates
on 100 photos (64 for the detector) and judges on the others. Prints rows of Markdown.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

STEPS = ["biases", "ranges", "equalization", "shift", "descent", "rounding", "lifting"]
VARIANTS = [
    ("methods alone", ["--effort", "off"]),
    *[(f"{step} alone", ["--effort", "default", "--recovery-steps", step]) for step in STEPS],
    *[(f"without {step}", ["--effort", "default", "--recovery-steps", ",".join(s for s in STEPS if s != step)]) for step in STEPS],
    ("shift of unpadded consumers", ["--effort", "default", "--shift", "unpadded"]),
    ("nothing lifted", ["--effort", "default", "--lift-budget", "0"]),
    ("for TensorRT, nothing lifted", ["--effort", "default", "--deploy-to", "tensorrt", "--lift-budget", "0"]),
    ("fast", ["--effort", "fast"]),
    ("default", ["--effort", "default"]),
    ("thorough", ["--effort", "thorough"]),
]


def run(calib, arguments):
    with tempfile.TemporaryDirectory() as folder:
        command = [calib, "run", *arguments, "--precisions", "int8", "--tensorrt", "off", "--bench-seconds", "0"]
        subprocess.run([*command, "--out", folder, "--no-progress", "-q"], check=True, stdout=subprocess.DEVNULL)
        return json.loads(pathlib.Path(folder, "report.json").read_text())


def figures(report):
    int8 = next(one for one in report["precisions"] if one["precision"] == "int8")
    sqnr = min(output["sqnr_db"] for output in int8["outputs"])
    recovery = report.get("recovery") or {"steps": [], "lifted": []}
    seconds = sum(step["seconds"] for step in recovery["steps"])
    row = [f"{sqnr:.2f}"]
    if agreement := int8.get("agreement"):
        row += [f"{agreement['top5_overlap']:.3f}", f"{agreement['top1']:.3f}"]
    if detection := int8.get("detection"):
        row += [f"{detection['map50_95']:.4f}", f"{detection['agreement']['recall']:.3f}"]
    return [*row, str(len(recovery["lifted"])), f"{seconds:.1f}"]


def main():
    calib, shared = sys.argv[1], pathlib.Path(sys.argv[2])
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
            print(f"| {variant} | {' | '.join(figures(run(calib, [*arguments, *flags])))} |", flush=True)


if __name__ == "__main__":
    main()
