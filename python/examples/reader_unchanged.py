"""A script for onnxruntime.quantization with one import changed."""

import sys

import numpy as np

from trtcalib.compat import quantize_static  # was: from onnxruntime.quantization import quantize_static

model, arrays, output = sys.argv[1:]


class Reader:
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


x = np.load(arrays)["input"]
quantize_static(model, output, Reader({"input": x[i : i + 16]} for i in range(0, len(x), 16)))
