"""Quantize a model of more than 2 GB and hold peak memory against its weights (`make test-large`).

Writes a stack of matrix products with external data, and the ranges of its tensors as a TensorRT calibration cache,
into a temporary folder (6 GB of disk), quantizes it with the given binary, and fails when that needs more than 1.5
times the weights, or when the quantized model does not run or is far from the float one.

    python scripts/large_model.py target/release/calib
"""

import os
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

LAYERS, WIDTH = 34, 4096
LIMIT = 1.5


def generate(path, cache, x):
    """Products of 4096 x 4096 with a ReLU between them, their weights in a file beside the model; returns its size.

    `cache` gets the largest magnitudes of the tensors from the input `x` on.
    """
    rng = np.random.default_rng(1)
    nodes, constants, scales = [], [], ["TRT-101300-MinMaxCalibration"]
    data = path.with_suffix(".data")
    with data.open("wb") as file:
        for layer in range(LAYERS):
            values = rng.standard_normal((WIDTH, WIDTH), np.float32) * np.float32((2 / WIDTH) ** 0.5)
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in ("location", data.name), ("offset", str(file.tell())), ("length", str(values.nbytes)):
                tensor.external_data.add(key=key, value=value)
            file.write(values.tobytes())
            constants.append(tensor)
            source = f"r{layer - 1}" if layer else "x"
            scales.append(f"{source}: {struct.pack('>f', np.abs(x).max() / 127).hex()}")
            x = np.maximum(x @ values, 0)
            nodes.append(helper.make_node("MatMul", [source, f"w{layer}"], [f"m{layer}"], f"product{layer}"))
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"], f"relu{layer}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16, WIDTH]) for name in ("x", f"r{LAYERS - 1}")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    cache.write_text("\n".join(scales) + "\n")
    return data.stat().st_size


def run(command):
    """Peak resident memory of a command, in bytes."""
    print("$", *command, flush=True)
    process = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{command[1]} failed")
    return usage.ru_maxrss * 1024


def output(path, x):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def main():
    calib = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model, cache, quantized = (str(folder / name) for name in ("model.onnx", "calibration.cache", "int8.onnx"))
        x = np.random.default_rng(2).standard_normal((16, WIDTH), np.float32)
        weights = generate(Path(model), Path(cache), x)
        peak = run([calib, "quantize", "--model", model, "--table", cache, "-o", quantized])
        size = sum(path.stat().st_size for path in folder.glob("int8.onnx*"))
        print(f"peak {peak / 1e9:.2f} GB, {peak / weights:.2f} times the weights of {weights / 1e9:.2f} GB", flush=True)
        onnx.checker.check_model(quantized)
        float_, int8 = (output(path, x).astype(np.float64) for path in (model, quantized))
        sqnr_db = 10 * np.log10((float_**2).sum() / ((float_ - int8) ** 2).sum())
        print(f"quantized: {size / 1e9:.2f} GB, {sqnr_db:.1f} dB")
        if peak > LIMIT * weights:
            sys.exit(f"quantizing needed more than {LIMIT} times the weights")
        if size > 0.27 * weights or sqnr_db < 15:
            sys.exit("the quantized model is too large or too far from the float one")


if __name__ == "__main__":
    main()
