"""What tests of the package have in common."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

import trtcalib as tc

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "calib_data/demo.onnx"
PROGRAM = Path(sys.executable).with_name("calib")
COUNT = 48
#: Of the rows that Ray has.
COLUMNS = {"columns": {"input": "input"}}


def pixels() -> np.ndarray:
    """Preprocessed images, N x 3 x 64 x 64."""
    from PIL import Image

    files = sorted((ROOT / "calib_data/images").glob("*.png"))[:: 640 // COUNT][:COUNT]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return np.ascontiguousarray(((images / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).transpose(0, 3, 1, 2))


def program(*words, **options):
    return subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, **options)


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self, arrays):
        self._batches = iter(np.split(arrays, [7, 8, 30]))

    def get_next(self):
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


class Feeds:
    """A reader of what it is given."""

    def __init__(self, feeds, end=None):
        self._feeds, self._end = iter(feeds), end

    def get_next(self):
        return next(self._feeds, self._end)


def scaled(folder: Path) -> Path:
    """A model with the inputs `x` (3 x 32 x 32) and `scale` (1)."""
    from onnx import TensorProto, helper, numpy_helper

    value = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", *shape])
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Mul", ["f", "scale"], ["y"], name="mul"),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", 3, 32, 32), value("scale", 1)], [value("y", 8)], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "scaled.onnx")
    return folder / "scaled.onnx"


def minmax(model, data) -> dict:
    return tc.calibrate(model, data, method="minmax").to_dict()


class Unheard(Exception):
    pass
