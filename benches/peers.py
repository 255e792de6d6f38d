#!/usr/bin/env python3
"""EfficientNet-Lite0 in INT8 by calib and by onnxruntime.quantization: the same images, one run.

usage: peers.py CALIB SHARED [OUT]

CALIB is the release binary, SHARED the folder with models/efficientnet_lite0.onnx and imagenet/. `calib run` chooses
100 images to calibrate and evaluates on the other 400; onnxruntime.quantization gets the same lists, and the
agreement of its models, and of calib's, with the float model is computed here from Pillow's pixels (calib's own report
uses its own JPEG decoder, which differs by a few levels). Every job is a process of its own,
so that its peak memory is its own. Needs numpy, pillow, onnx and onnxruntime (scripts/requirements-test.txt).
"""

import json
import os
import subprocess
import sys
import tempfile
import time

# What runs in processes of its own finds photos.py.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH")]))

JOB = r"""
import json, resource, sys, time
import numpy as np, onnxruntime as ort
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from photos import Reader, load
model, folder, lists, method, output = sys.argv[1:]
names = json.load(open(lists))
start = time.perf_counter()
seconds = peak = 0.0
options = {"ActivationSymmetric": True, "WeightSymmetric": True}
if method == "percentile": options["CalibPercentile"] = 99.99
if method != "given": quantize_static(model, output, Reader(folder, names["calibration"]), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
                calibrate_method=getattr(CalibrationMethod, {"percentile": "Percentile", "entropy": "Entropy"}.get(method, "MinMax")),
                extra_options=options)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
threads = ort.SessionOptions(); threads.intra_op_num_threads = 2
threads.add_session_config_entry("session.x64quantprecision", "1")
a, b = ort.InferenceSession(model, threads), ort.InferenceSession(output, threads)
top1 = overlap = 0; signal = noise = 0.0
for name in names["evaluation"]:
    x = load(folder, name)
    r, t = a.run(None, {"input": x})[0][0], b.run(None, {"input": x})[0][0]
    top1 += r.argmax() == t.argmax()
    overlap += len(set(np.argsort(-r)[:5]) & set(np.argsort(-t)[:5])) / 5
    signal += float((r.astype(np.float64) ** 2).sum()); noise += float(((r.astype(np.float64) - t) ** 2).sum())
n = len(names["evaluation"])
print(json.dumps({"seconds": seconds, "peak_mb": peak, "top1": top1 / n, "overlap": overlap / n, "sqnr_db": 10 * np.log10(signal / noise)}))
"""


def main() -> None:
    calib, shared = sys.argv[1:3]
    work = sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp()
    model, folder = f"{shared}/models/efficientnet_lite0.onnx", f"{shared}/imagenet"
    out = os.path.join(work, "calib")
    start = time.perf_counter()
    subprocess.run(
        [calib, "run", "-q", "--model", model, "--data", folder, "--preset", "imagenet-lite", "--calib-samples", "100",
         "--labels", f"{folder}/labels.csv", "--precisions", "fp32,int8", "--bench-seconds", "0", "--tensorrt", "off", "--out", out],
        check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - start
    report = json.load(open(f"{out}/report.json"))
    int8 = next(p for p in report["precisions"] if p["precision"] == "int8")
    own = (report["calibration"]["seconds"], report["calibration"]["peak_rss_bytes"] / 2**20)
    rows = [("calib, its own report", *own, int8["agreement"]["top1"], int8["agreement"]["top5_overlap"],
             int8["outputs"][0]["sqnr_db"])]
    lists = os.path.join(work, "lists.json")
    json.dump({key: report["dataset"][key] for key in ("calibration", "evaluation")}, open(lists, "w"))
    for method in ("given", "minmax", "percentile", "entropy"):
        output = f"{out}/model.int8.onnx" if method == "given" else os.path.join(work, f"{method}.onnx")
        done = subprocess.run([sys.executable, "-c", JOB, model, folder, lists, method, output], capture_output=True, text=True)
        if done.returncode != 0:
            rows.append((f"onnxruntime {method}", float("nan"), float("nan"), float("nan"), float("nan"), float("nan")))
            print(done.stderr[-2000:], file=sys.stderr)
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        figures = (found["top1"], found["overlap"], found["sqnr_db"])
        if method == "given":
            rows.append(("calib " + report["calibration"]["method"] + ", Pillow's pixels", *own, *figures))
        else:
            rows.append((f"onnxruntime {method}", found["seconds"], found["peak_mb"], *figures))
    print(f"calib run as a whole (calibration, choice of the method, evaluation, report): {whole:.1f} s\n")
    print("| tool | calibration s | peak MB | top-1 agreement | top-5 overlap | SQNR dB |")
    print("|---|---|---|---|---|---|")
    for name, *figures in rows:
        print("| {} | {:.1f} | {:.0f} | {:.4f} | {:.4f} | {:.1f} |".format(name, *figures))
    best = max(row[3] for row in rows[2:])
    print(f"\nagreement on the same pixels, against the best of onnxruntime: {100 * (rows[1][3] - best):+.2f} points")


if __name__ == "__main__":
    main()
