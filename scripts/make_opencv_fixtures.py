#!/usr/bin/env python3
"""Writes tests/fixtures/images/opencv.npz: what OpenCV's `resize` with INTER_LINEAR makes of pictures, and letterboxes.

`source` and `tall` are pictures, `resize_SOURCE_WxH` their resized versions, `yolo_SOURCE` and `yolox_SOURCE` the float32
inputs [1, 3, 64, 80] that Ultralytics' and YOLOX's preprocessing make of them. Needs NumPy and opencv-python-headless;
made with OpenCV 5.0.0, and the same with 4.12.0.

    python3 scripts/make_opencv_fixtures.py
"""

from pathlib import Path

import cv2
import numpy as np

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "images" / "opencv.npz"
# (width, height): reduced, enlarged, mixed, one axis only, exactly half of both and of one, a third, a single pixel.
SIZES = [(17, 11), (71, 60), (13, 60), (50, 20), (30, 34), (25, 17), (25, 34), (16, 12), (1, 1), (49, 33), (100, 68)]
HEIGHT, WIDTH = 64, 80


def linear(picture, width, height):
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)


def yolo(rgb):
    height, width = rgb.shape[:2]
    ratio = min(HEIGHT / height, WIDTH / width)
    new = round(width * ratio), round(height * ratio)
    dw, dh = (WIDTH - new[0]) / 2, (HEIGHT - new[1]) / 2
    resized = linear(rgb, *new) if new != (width, height) else rgb
    top, bottom, left, right = round(dh - 0.1), round(dh + 0.1), round(dw - 0.1), round(dw + 0.1)
    framed = cv2.copyMakeBorder(resized, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114,) * 3)
    return (framed.transpose(2, 0, 1).astype(np.float32) / np.float32(255))[None]


def yolox(rgb):
    height, width = rgb.shape[:2]
    ratio = min(HEIGHT / height, WIDTH / width)
    new = int(width * ratio), int(height * ratio)
    framed = np.full((HEIGHT, WIDTH, 3), 114, np.uint8)
    framed[: new[1], : new[0]] = linear(rgb[..., ::-1], *new)
    return framed.transpose(2, 0, 1).astype(np.float32)[None]


if __name__ == "__main__":
    rng = np.random.default_rng(7)
    arrays = {}
    for name, (width, height) in {"source": (50, 34), "tall": (29, 91), "same": (80, 51), "dot": (1, 1)}.items():
        # Smooth in part and noise in part: rounding shows in both.
        smooth = linear(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8), width, height)
        noise = rng.integers(0, 256, smooth.shape, dtype=np.uint8)
        picture = np.where((np.arange(width) % 16 < 8)[None, :, None], smooth, noise)
        arrays[name] = picture
        for size in SIZES:
            arrays[f"resize_{name}_{size[0]}x{size[1]}"] = linear(picture, *size)
        arrays[f"yolo_{name}"] = yolo(picture)
        arrays[f"yolox_{name}"] = yolox(picture)
    np.savez_compressed(OUT, **arrays)
