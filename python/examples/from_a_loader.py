"""From a loader of batches, as torchvision's, to an INT8 model and a verdict."""

import sys

import numpy as np
import trtcalib as tc

model, images, labels, output = sys.argv[1:]
x, y = np.load(images), np.load(labels)
loader = [(x[i : i + 32], y[i : i + 32]) for i in range(0, len(x), 32)]  # or a torch.utils.data.DataLoader

table = tc.calibrate(model, loader[: len(loader) // 2])
tc.quantize(model, table, output)
verdict = tc.compare(model, output, loader[len(loader) // 2 :], gates={"top1": 0.9})
for row in verdict.rows():
    print(row)
print("passed" if verdict.passed else "failed")
