"""Quantize the zoo with onnxruntime.quantization, for the comparison in docs/zoo.md.

Min-max, per channel, symmetric, QDQ, on the samples that tests/zoo draws; writes for each model the SQNR of its
outputs over the evaluation samples, in decibels, or why there is none.

    python scripts/zoo_peer.py target/zoo/peer.json [NAME...]
"""

import gzip
import json
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from zoo_skeleton import drawn, fill, words

ZOO = Path(__file__).resolve().parent.parent / "tests/fixtures/zoo"
CALIBRATION, EVALUATION = range(8), range(8, 32)  # as in tests/zoo/samples.rs


def sample(inputs, number):
    """Sample `number`: every input drawn like a weight named `INPUT#NUMBER`."""
    feed = {}
    for name, spec in inputs.items():
        shape, count = spec["shape"], int(np.prod(spec["shape"]))
        if name == "attention_mask":
            feed[name] = np.ones(shape, np.int64)
        elif spec["dtype"] == "int64":
            feed[name] = (words(f"{name}#{number}", count) % np.uint64(500)).astype(np.int64).reshape(shape)
        else:
            feed[name] = drawn("seeded normal 0 1", f"{name}#{number}", count).astype(np.float32).reshape(shape)
    return feed


class Reader(CalibrationDataReader):
    def __init__(self, inputs):
        self.samples = (sample(inputs, number) for number in CALIBRATION)

    def get_next(self):
        return next(self.samples, None)


def session(path):
    """The model in ONNX Runtime, with less optimization where all of it fails."""
    levels = ort.GraphOptimizationLevel
    for level in levels.ORT_ENABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_DISABLE_ALL:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = level
        # As calib runs them: products of U8 and S8 without saturation.
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            failure = error
    raise failure


def sqnr_db(float_path, quantized_path, inputs):
    """SQNR of the worst floating-point output over all evaluation samples."""
    reference, target = session(float_path), session(quantized_path)
    sums = {}
    for number in EVALUATION:
        feed = sample(inputs, number)
        for output, r, t in zip(reference.get_outputs(), reference.run(None, feed), target.run(None, feed)):
            if r.dtype.kind != "f":
                continue
            r, t = r.astype(np.float64), t.astype(np.float64)
            total = sums.setdefault(output.name, [0.0, 0.0])
            total[0] += float((r * r).sum())
            total[1] += float(((r - t) ** 2).sum())
    return float(min(10 * np.log10(signal / noise) for signal, noise in sums.values()))


def measure(entry, folder):
    with gzip.open(ZOO / entry["file"]) as file:
        model = onnx.load(file)
    fill(model)
    raw, prepared, folded, quantized = (folder / f"{name}.onnx" for name in ("float", "raised", "folded", "int8"))
    onnx.save(model, raw)
    note = None
    if entry["opset"] < 13:  # per-channel needs it, and the tool does not raise it
        onnx.save(onnx.version_converter.convert_version(model, 13), prepared)
    else:
        prepared = raw
    try:
        quant_pre_process(str(prepared), str(folded), skip_symbolic_shape=True)
        prepared = folded
    except Exception as error:  # what the tool advises to run first can fail where the rest works
        note = f"quant_pre_process: {error}"
    quantize_static(
        str(prepared),
        str(quantized),
        Reader(entry["inputs"]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    return {"sqnr_db": sqnr_db(raw, quantized, entry["inputs"])} | ({"note": note} if note else {})


def main():
    out, names = Path(sys.argv[1]), set(sys.argv[2:])
    logging.disable(logging.WARNING)
    results = json.loads(out.read_text()) if out.exists() else {}
    for entry in json.loads((ZOO / "zoo.json").read_text()):
        key = entry["file"].removesuffix(".onnx.gz")
        if (names and key not in names) or (not names and key in results):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                results[key] = measure(entry, Path(folder))
            except Exception as error:
                results[key] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(key, results[key], file=sys.stderr, flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
