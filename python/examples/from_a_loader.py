"""From a loader of batches, as torchvision's, to an INT8 model and a verdict."""

import sys

import numpy as np
import trtcalib as tc

model, images, labels, output = sys.argv[1:]
x, y = np.load(images), np.load(labels)


def loader(x, y):  # or torch.utils.data.DataLoader(torch.utils.data.TensorDataset(...), batch_size=32)
    return ((x[i : i + 32], y[i : i + 32]) for i in range(0, len(x), 32))


table = tc.calibrate(model, loader(x[::2], y[::2]))
tc.quantize(model, table, output)
verdict = tc.compare(model, output, loader(x[1::2], y[1::2]), gates={"top1": 0.9})
for row in verdict.rows():
    print(row)
print("passed" if verdict.passed else "failed")
