"""Samples for Polygraphy, as `calib` makes them of the embedded pictures (configs/demo.toml), in batches of two and one.

    polygraphy run calib_data/demo.onnx --onnxrt --data-loader-script scripts/polygraphy_samples.py \\
        --save-inputs tests/fixtures/polygraphy/inputs.json --save-outputs tests/fixtures/polygraphy/outputs.json

Run in the project's folder; needs polygraphy, onnxruntime, numpy and pillow.
"""

from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = sorted(Path("calib_data/images").glob("*.png"))[:3]


def sample(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32).transpose(2, 0, 1)
    return (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.25)


def load_data():
    for pictures in (PICTURES[:2], PICTURES[2:]):
        yield {"input": np.stack([sample(picture) for picture in pictures])}
