"""Weightless ONNX models: strip float initializers, and fill them again with seeded values.

A stripped initializer keeps its name, dims and data_type, holds no data, and its
`doc_string` says how to draw it: `seeded normal MEAN STD`, `seeded uniform LOW HIGH`
or `seeded choice FIRST SECOND SHARE` (SHARE is the probability of FIRST).
tests/fixtures/zoo/README.md defines the numbers bit for bit.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KEPT_ELEMENTS = 64  # smaller tensors (shapes, scales, clip bounds) stay as they are
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
NORMAL_STD = 65536 * np.sqrt(4 / 12)  # of the sum of four uniform 16-bit numbers


def tensors_of(graph):
    """Initializers and `Constant` values of a graph and of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and node.op_type == "Constant":
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from tensors_of(attribute.g)


def describe(values):
    """The doc_string for an array of weights."""
    distinct = np.unique(values)
    if len(distinct) == 2:
        return f"seeded choice {distinct[0]:.6g} {distinct[1]:.6g} {np.mean(values == distinct[0]):.6g}"
    if distinct[0] > 0:
        return f"seeded uniform {distinct[0]:.6g} {distinct[-1]:.6g}"
    return f"seeded normal {values.mean():.6g} {values.std():.6g}"


def strip(model):
    """Remove large float weights, documentation and shape hints; in place."""
    for number, tensor in enumerate(tensors_of(model.graph)):
        tensor.doc_string = ""
        if tensor.data_type not in FLOATS or np.prod(tensor.dims, dtype=np.int64) <= KEPT_ELEMENTS:
            continue
        tensor.name = tensor.name or f"constant_{number}"
        doc = describe(numpy_helper.to_array(tensor).astype(np.float64))
        bare = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, doc_string=doc)
        tensor.CopyFrom(bare)
    model.doc_string = ""
    del model.metadata_props[:]
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        del graph.value_info[:]
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
            graphs.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    for function in model.functions:
        function.doc_string = ""
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def words(name, count):
    """`count` 64-bit words for a tensor: SplitMix64 counted up from FNV-1a of its name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def drawn(doc, name, count):
    """`count` float64 values as the doc_string asks."""
    kind, *numbers = doc.split()[1:]
    numbers = [float(number) for number in numbers]
    z = words(name, count)
    unit = (z >> np.uint64(11)).astype(np.float64) / 2**53
    if kind == "choice":
        return np.where(unit < numbers[2], numbers[0], numbers[1])
    if kind == "uniform":
        return numbers[0] + unit * (numbers[1] - numbers[0])
    lanes = sum(((z >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.float64) for shift in (0, 16, 32, 48))
    return numbers[0] + (lanes - 131070) / NORMAL_STD * numbers[1]


def fill(model):
    """Give every stripped tensor its seeded values; in place."""
    for tensor in tensors_of(model.graph):
        if tensor.doc_string.startswith("seeded "):
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.raw_data = drawn(tensor.doc_string, tensor.name, int(np.prod(tensor.dims))).astype(dtype).tobytes()
            tensor.doc_string = ""
