#!/usr/bin/env python3
"""Make the demo model harder to quantize without changing what it computes.

Usage: unbalance_demo_model.py [MODEL.onnx], in place

Networks of the MobileNet kind often have activation channels whose ranges differ a lot. Here the
channel with the heaviest tail behind each ReLU expansion is doubled, and the depthwise
filter that reads it is halved. ReLU lets a positive factor through, and a power of two
is exact in floating point: every output keeps its bits, but a per-tensor range that
covers the maximum now wastes up to one bit on all other channels.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from make_demo_data import CLASSES, draw

TRAIN_SEED = 1
MEAN, STD = 0.5, 0.25  # every channel, after division by 255
FACTOR = 2.0
SAMPLES = 400


def expansions(graph):
    """(expanding Conv, Relu, depthwise Conv) node triples."""
    producer = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        relu = producer.get(node.input[0]) if node.op_type == "Conv" else None
        if relu is not None and relu.op_type == "Relu":
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            if group > 1:
                yield producer[relu.input[0]], relu, node


def activations(model, tensors):
    """Values of `tensors` over training images, NCHW."""
    probed = onnx.ModelProto.FromString(model.SerializeToString())
    probed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors)
    pixels = [draw(TRAIN_SEED, i, i % len(CLASSES)).convert("RGB") for i in range(SAMPLES)]
    images = np.stack([np.asarray(p, np.float32).transpose(2, 0, 1) for p in pixels])
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(tensors, {"input": (images / 255 - np.float32(MEAN)) / np.float32(STD)})


def unbalance(path):
    """Rewrite the model at `path`; returns (tensor, channel) of each change."""
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}

    def scale(name, channel, factor):
        values = numpy_helper.to_array(weights[name]).copy()
        values[channel] *= factor
        weights[name].CopyFrom(numpy_helper.from_array(values, name))

    triples = list(expansions(model.graph))
    changes = []
    for (expand, relu, depthwise), values in zip(triples, activations(model, [relu.output[0] for _, relu, _ in triples])):
        channel = int(values.max((0, 2, 3)).argmax())
        scale(expand.input[1], channel, FACTOR)
        scale(expand.input[2], channel, FACTOR)
        scale(depthwise.input[1], channel, 1 / FACTOR)
        changes.append((relu.output[0], channel))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return changes


if __name__ == "__main__":
    default = Path(__file__).parent.parent / "calib_data" / "demo.onnx"
    for tensor, channel in unbalance(Path(sys.argv[1]) if len(sys.argv) > 1 else default):
        print(f"doubled channel {channel} of {tensor}")
