#!/usr/bin/env python3
"""Export the architecture zoo as weightless ONNX skeletons.

Usage: export_zoo.py [--out tests/fixtures/zoo] [--only REGEX] [--jobs N]

Needs torch, torchvision, timm, onnx, onnxscript and onnxruntime. Exporters, opsets and
dynamic axes rotate over the list, so that each of them meets every family; a model that
an exporter cannot take falls back to the next. Each skeleton is filled with its
seeded weights and run before it is kept. `zoo.json` lists what was written. 16 cores
take about one minute, without a GPU.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import tempfile
import time
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from zoo_models import DYNAMIC, ENTRIES
from zoo_skeleton import fill, strip

# (exporter, opset, symbolic axes), dealt out in turn
VARIANTS = [
    ("torchscript", 17, True), ("dynamo", 18, False), ("torchscript", 13, False), ("dynamo", 20, True),
    ("torchscript", 11, True), ("torchscript", 20, False), ("dynamo", 23, True), ("torchscript", 9, False),
    ("dynamo", 18, True), ("torchscript", 15, True),
]
BOTH = {"torchvision_resnet50", "torchvision_mobilenet_v2", "timm_vit_tiny_patch16_224", "timm_swin_tiny_patch4_window7_224",
        "torchvision_convnext_tiny", "espcn", "gru_tagger", "encoder_masked", "yolo_tiny", "unet_transposed"}
FALLBACKS = [("torchscript", 17, True), ("torchscript", 17, False), ("dynamo", 18, False)]


def enliven(model, inputs):
    """Give fresh weights the statistics of trained ones, so that nothing is dead or explodes."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    for module in model.modules():
        if isinstance(module, norms) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.2)
    for parameter in model.parameters():
        if parameter.numel() > 1 and parameter.detach().abs().max() < 1e-3:  # zero starts, layer scales
            if parameter.dim() > 1 and parameter.shape[-1] > 1:
                nn.init.normal_(parameter, 0, 0.05)
            else:
                nn.init.uniform_(parameter, 0.1, 0.3)
    batch_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    model.eval()
    if batch_norms:
        for module in batch_norms:
            module.train()
            module.momentum = None
            module.reset_running_stats()
        with torch.no_grad():
            for _ in range(2):
                model(*(torch.cat([torch.randn_like(x) for _ in range(4)]) for x in inputs))
        for module in batch_norms:
            module.eval()
            module.momentum = 0.1
            module.running_var.clamp_(min=0.1 * module.running_var.mean().item() + 1e-3)
    return model.eval()


def export(model, inputs, names, variant, axes, path):
    """One export; raises whatever the exporter raises."""
    exporter, opset, symbolic = variant
    common = {"input_names": names, "opset_version": opset, "dynamo": exporter == "dynamo"}
    with contextlib.redirect_stdout(io.StringIO()):
        if exporter == "torchscript":
            torch.onnx.export(model, inputs, str(path), dynamic_axes={n: axes for n in names} if symbolic else None, **common)
        else:
            shapes = tuple({a: torch.export.Dim(label) if label == "batch" else torch.export.Dim.DYNAMIC
                            for a, label in axes.items()} for _ in names) if symbolic else None
            program = torch.onnx.export(model, inputs, dynamic_shapes=shapes, verbose=False, **common)
            program.save(str(path), external_data=False)


def feeds(inputs):
    """Seeded input values by name."""
    rng = np.random.default_rng(0)
    values = {}
    for name, (dtype, shape) in inputs.items():
        if name == "attention_mask":
            values[name] = np.ones(shape, np.int64)
        else:
            values[name] = rng.integers(0, 500, shape) if dtype == "int64" else rng.standard_normal(shape, np.float32)
    return values


def checked(skeleton, inputs):
    """Fill a skeleton, check it, run it; return the number of weights."""
    whole = onnx.ModelProto.FromString(skeleton)
    fill(whole)
    onnx.checker.check_model(whole)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    for output, array in zip(session.get_outputs(), session.run(None, {k: v for k, v in feeds(inputs).items() if k in wanted})):
        if not np.isfinite(array).all() or np.abs(array).max() > 1e4 or array.std() < 1e-6:
            raise ValueError(f"output {output.name}: std {array.std():.3g}, max {np.abs(array).max():.3g}")
    return sum(int(np.prod(t.dims)) for t in whole.graph.initializer)


def attempt(index, variant, scratch):
    """Export one entry one way; returns (manifest record, skeleton bytes)."""
    name, make, inputs = ENTRIES[index]
    torch.set_num_threads(1)
    torch.manual_seed(zlib.crc32(name.encode()))
    arrays = feeds(inputs)
    tensors = tuple(torch.from_numpy(arrays[n]) for n in inputs)
    model = enliven(make(), tensors)
    axes = {0: "batch", **DYNAMIC.get(name, {})}
    # A batch of one would be taken for a constant by torch.export.
    traced = tuple(torch.cat((t, t)) for t in tensors) if variant[2] else tensors
    path = Path(scratch) / f"{name}-{variant[0]}-{os.getpid()}.onnx"
    export(model, traced, list(inputs), variant, axes, path)
    proto = onnx.load(path)
    path.unlink()
    strip(proto)
    skeleton = proto.SerializeToString(deterministic=True)
    weights = checked(skeleton, inputs)
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    record = {"name": name, "file": f"{name}.{variant[0]}{opset}{'.dynamic' if variant[2] else ''}.onnx.gz", "exporter": variant[0],
              "opset": opset, "dynamic": variant[2], "nodes": len(proto.graph.node), "weights": weights,
              "inputs": {k: {"dtype": d, "shape": s} for k, (d, s) in inputs.items()}}
    return record, skeleton


def job(index, variants, scratch):
    """The first variant that works, and why the others did not."""
    failures = []
    for variant in variants:
        started = time.time()
        try:
            record, skeleton = attempt(index, variant, scratch)
            return record, skeleton, failures, time.time() - started
        except Exception as error:  # an exporter may raise anything
            failures.append(f"{ENTRIES[index][0]} {variant}: {type(error).__name__}: {str(error).strip()[:300]!r}")
    return None, None, failures, 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "fixtures" / "zoo")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    jobs = []
    for index, (name, _, _) in enumerate(ENTRIES):
        if re.search(options.only, name):
            wanted = VARIANTS[index % len(VARIANTS)]
            jobs.append((index, [wanted, *FALLBACKS]))
            if name in BOTH:
                other = ("torchscript", 13, True) if wanted[0] == "dynamo" else ("dynamo", 18, True)
                jobs.append((index, [other]))
    records = []
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(options.jobs) as pool:
        for future in as_completed([pool.submit(job, index, variants, scratch) for index, variants in jobs]):
            record, skeleton, failures, seconds = future.result()
            for failure in failures:
                print("failed:", failure, flush=True)
            if record:
                records.append(record)
                packed = gzip.compress(skeleton, 9, mtime=0)
                (options.out / record["file"]).write_bytes(packed)
                print(f"{record['file']}: {record['nodes']} nodes, {len(skeleton)} bytes, packed {len(packed)}, {seconds:.0f} s", flush=True)
    records.sort(key=lambda r: r["file"])
    (options.out / "zoo.json").write_text(json.dumps(records, indent=1) + "\n")
    print(f"{len(records)} skeletons")


if __name__ == "__main__":
    main()
