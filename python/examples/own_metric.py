"""A metric of one's own on arrays from a file: the share of samples whose best class is sure."""

import sys

import numpy as np
import trtcalib as tc

model, arrays, output = sys.argv[1:]


def sure(outputs: list[dict[str, np.ndarray]], ids: list[str]) -> float:
    best = [np.sort(output["logits"])[-2:] for output in outputs]
    return float(np.mean([high - low > 1 for low, high in best]))


tc.quantize(model, tc.calibrate(model, arrays, samples=64), output)
found = tc.compare(model, output, arrays, metric=sure)
print(f"float {found['reference_metric']:.3f}, INT8 {found['targets'][0]['metric']:.3f}")
