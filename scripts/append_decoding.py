#!/usr/bin/env python3
"""Appends the decoding of its boxes to a detector, so that examples and tests have heads of other kinds.

    python3 scripts/append_decoding.py yolox_nano.onnx yolov8_form.onnx
    python3 scripts/append_decoding.py fastestdet.onnx fastestdet_boxes.onnx

YOLOX-Nano (raw grid, [1, 3549, 85]) becomes a YOLOv8 head: output `output0`, [1, 84, 3549], centre and size in pixels over
class scores, which are objectness times class. FastestDet (`758`, [1, 85, 22, 22]) gets outputs `boxes` [1, 484, 4], centre
and size as shares of the picture, and `scores` [1, 484, 80]. Needs onnx and NumPy.
"""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Tail:
    """Nodes behind an output."""

    def __init__(self, model):
        self.graph = model.graph
        self.count = 0

    def constant(self, values, kind=np.float32):
        name = f"decode/c{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    def add(self, op, *inputs, output=None, **attributes):
        self.count += 1
        name = output or f"decode/{op.lower()}_{self.count}"
        self.graph.node.append(helper.make_node(op, list(inputs), [name], name=f"decode/{op}_{self.count}", **attributes))
        return name

    def slice(self, x, axis, start, end):
        bounds = [self.constant([v], np.int64) for v in (start, end, axis)]
        return self.add("Slice", x, *bounds)


def yolov8_form(model):
    tail = Tail(model)
    out = model.graph.output[0].name
    grid = np.array([(x, y, s) for s in (8, 16, 32) for y in range(416 // s) for x in range(416 // s)], np.float32)
    cells, strides = tail.constant(grid[None, :, :2]), tail.constant(grid[None, :, 2:])
    centre = tail.add("Mul", tail.add("Add", tail.slice(out, 2, 0, 2), cells), strides)
    size = tail.add("Mul", tail.add("Exp", tail.slice(out, 2, 2, 4)), strides)
    scores = tail.add("Mul", tail.slice(out, 2, 4, 5), tail.slice(out, 2, 5, 85))
    joined = tail.add("Concat", centre, size, scores, axis=2)
    tail.add("Transpose", joined, output="output0", perm=[0, 2, 1])
    return [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 84, len(grid)])]


def fastestdet_boxes(model):
    tail = Tail(model)
    out = model.graph.output[0].name
    rows = tail.add("Reshape", out, tail.constant([1, 85, 484], np.int64))
    cell = np.array([(x, y) for y in range(22) for x in range(22)], np.float32)[None]
    rows = tail.add("Transpose", rows, perm=[0, 2, 1])
    moved = tail.add("Add", tail.add("Tanh", tail.slice(rows, 2, 1, 3)), tail.constant(cell))
    centre = tail.add("Div", moved, tail.constant(22.0))
    tail.add("Concat", centre, tail.add("Sigmoid", tail.slice(rows, 2, 3, 5)), output="boxes", axis=2)
    objectness = tail.add("Pow", tail.slice(rows, 2, 0, 1), tail.constant(0.6))
    tail.add("Mul", objectness, tail.add("Pow", tail.slice(rows, 2, 5, 85), tail.constant(0.4)), output="scores")
    info = helper.make_tensor_value_info
    return [info("boxes", TensorProto.FLOAT, [1, 484, 4]), info("scores", TensorProto.FLOAT, [1, 484, 80])]


def main(source, target):
    model = onnx.load(source)
    outputs = yolov8_form(model) if model.graph.input[0].name == "images" else fastestdet_boxes(model)
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.checker.check_model(model)
    onnx.save(model, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
