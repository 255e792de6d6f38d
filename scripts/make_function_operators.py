#!/usr/bin/env python3
"""Makes tests/fixtures/function_operators: one small model for every standard operator that ONNX defines as a function.

The operator `kept` stands between nodes of other types, where its inputs and outputs are floats, so that a program that
replaces it by the function's body or folds it away is found out. Attributes and shapes are those of ONNX's own tests of
the operator. Needs the package onnx; usage: make_function_operators.py OUTDIR
"""

import os
import sys

import onnx
from onnx import TensorProto, helper
from onnx.backend.test.case.node import collect_testcases

FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16}
# The newest operator set that the models use: later ones are not in a released ONNX Runtime.
NEWEST = 26


def is_function(op_type, version):
    schema = onnx.defs.get_schema(op_type, version, "")
    return schema.has_function or schema.has_context_dependent_function


def surrounded(case):
    """The model of a test case, with a node in front of and behind the operator for every float tensor."""
    graph = case.model.graph
    node, nodes, behind = graph.node[0], [], []
    node.name = "kept"
    for info in graph.input:
        if info.type.tensor_type.elem_type in FLOATS:
            inner = info.name + "_negated"
            nodes.append(helper.make_node("Neg", [info.name], [inner], name="before_" + info.name))
            node.input[:] = [inner if name == info.name else name for name in node.input]
    for info in graph.output:
        if info.type.tensor_type.elem_type in FLOATS:
            inner = info.name + "_kept"
            behind.append(helper.make_node("Neg", [inner], [info.name], name="behind_" + info.name))
            node.output[:] = [inner if name == info.name else name for name in node.output]
    del graph.node[:]
    graph.node.extend([*nodes, node, *behind])
    return case.model


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    done = {}
    for case in collect_testcases(None):
        model = case.model
        if model is None or len(model.graph.node) != 1 or case.name.endswith("_expanded"):
            continue
        node = model.graph.node[0]
        version = min(model.opset_import[0].version, NEWEST)
        if node.domain or node.op_type in done:
            continue
        try:
            if not is_function(node.op_type, version):
                continue
        except onnx.defs.SchemaError:
            continue
        types = [info.type.WhichOneof("value") for info in (*model.graph.input, *model.graph.output)]
        if any(kind != "tensor_type" for kind in types):
            continue
        model.opset_import[0].version = version
        model.ir_version = 10
        done[node.op_type] = surrounded(case)
    for op_type, model in sorted(done.items()):
        model.producer_name = ""
        onnx.save(model, os.path.join(out, op_type + ".onnx"))
    print(len(done), "operators:", " ".join(sorted(done)))


if __name__ == "__main__":
    main()
