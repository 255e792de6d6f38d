#!/usr/bin/env python3
"""Draw the demo images: 20 kinds of flat shapes in cluttered, noisy scenes.

Usage: make_demo_data.py [--out calib_data] [--count 640]

Every image depends on (seed, index) alone, so the folder comes out byte for byte
the same with the versions pinned in requirements-demo.txt. The training script
draws from the same generator with other seeds.
"""

import argparse
import csv
import math
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64
OVERSAMPLING = 3
PALETTE = 64  # colours an image; keeps a PNG near 3 kB
COMMITTED_SEED = 2024
TAU = 2 * math.pi


def regular(corners, inner=None):
    """A regular polygon, or a star when `inner` is the radius of its notches."""
    radii = [1.0] if inner is None else [1.0, inner]
    steps = corners * len(radii)
    return [(radii[i % len(radii)] * math.sin(TAU * i / steps),
             -radii[i % len(radii)] * math.cos(TAU * i / steps)) for i in range(steps)]


def arc(start, stop, radius_x=1.0, radius_y=1.0, centre=(0.0, 0.0), steps=32):
    """Points of an elliptic arc, angles in turns."""
    angles = [TAU * (start + (stop - start) * i / steps) for i in range(steps + 1)]
    return [(centre[0] + radius_x * math.cos(a), centre[1] + radius_y * math.sin(a)) for a in angles]


def gear(teeth=8):
    """A wheel with rectangular teeth."""
    return [(r * math.cos(TAU * (t + o) / teeth), r * math.sin(TAU * (t + o) / teeth))
            for t in range(teeth) for o, r in ((-0.3, 0.72), (-0.2, 1.0), (0.2, 1.0), (0.3, 0.72))]


def heart():
    """The classic heart curve."""
    return [(math.sin(a) ** 3,
             -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16)
            for a in (TAU * i / 40 for i in range(40))]


def drop():
    """A disk with a pointed top."""
    return [(0.0, -1.0)] + arc(-0.07, 0.57, 0.68, 0.68, (0.0, 0.32))


W = 0.36  # half the width of a bar
# name -> outline and, where there is one, the hole
SHAPES = {
    "arrow": ([(0, -1), (0.8, -0.1), (0.32, -0.1), (0.32, 1), (-0.32, 1), (-0.32, -0.1), (-0.8, -0.1)], None),
    "crescent": (arc(0.12, 0.88) + arc(0.80, 0.20, 0.78, 0.78, (0.42, 0.0)), None),
    "cross": ([(-W, -1), (W, -1), (W, -W), (1, -W), (1, W), (W, W), (W, 1), (-W, 1), (-W, W), (-1, W), (-1, -W), (-W, -W)], None),
    "disk": (arc(0, 1), None),
    "drop": (drop(), None),
    "ellipse": (arc(0, 1, 1.0, 0.62), None),
    "frame": ([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)], [(-0.45, -0.45), (0.45, -0.45), (0.45, 0.45), (-0.45, 0.45)]),
    "gear": (gear(), None),
    "half_disk": ([(x, y - 0.4) for x, y in arc(0, 0.5)], None),
    "heart": (heart(), None),
    "hexagon": (regular(6), None),
    "l_bar": ([(-0.7, -1), (0, -1), (0, 0.35), (0.8, 0.35), (0.8, 1), (-0.7, 1)], None),
    "pentagon": (regular(5), None),
    "ring": (arc(0, 1), arc(0, 1, 0.55, 0.55)),
    "square": ([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)], None),
    "star4": (regular(4, 0.42), None),
    "star5": (regular(5, 0.45), None),
    "star6": (regular(6, 0.55), None),
    "t_bar": ([(-0.9, -1), (0.9, -1), (0.9, -0.35), (0.34, -0.35), (0.34, 1), (-0.34, 1), (-0.34, -0.35), (-0.9, -0.35)], None),
    "triangle": (regular(3), None),
}
CLASSES = list(SHAPES)


def placed(points, matrix, centre):
    """Unit outline -> pixels of the oversampled canvas."""
    return [tuple(p) for p in (np.asarray(points) @ matrix.T + centre) * OVERSAMPLING]


def mask_of(polygons):
    """Coverage in [0, 1] of (outline, value) polygons painted one over another."""
    canvas = Image.new("L", (SIZE * OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    for outline, value in polygons:
        pen.polygon(outline, fill=value)
    return np.asarray(canvas.reduce(OVERSAMPLING), np.float32)[..., None] / 255


def texture(rng, colour):
    """A field of about one colour: plain, a gradient, stripes, checks or blotches."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    angle = rng.uniform(0, TAU)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    period = rng.uniform(5, 18)
    kind = rng.integers(5)
    if kind == 0:
        field = np.zeros_like(x)
    elif kind == 1:
        field = along / SIZE
    elif kind == 2:
        field = np.sin(TAU * along / period)
    elif kind == 3:
        field = np.sign(np.sin(TAU * along / period) * np.sin(TAU * across / period))
    else:
        coarse = Image.fromarray(rng.normal(size=(6, 6)).astype(np.float32))
        field = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    tint = rng.normal(0, 26, 3) * rng.uniform(0.2, 1.0)
    return colour + field[..., None] * tint.astype(np.float32)


def clutter(rng):
    """A small stroke or chip that belongs to no shape."""
    centre = rng.uniform(0, SIZE, 2)
    length, width, angle = rng.uniform(4, 22), rng.uniform(1, 4), rng.uniform(0, TAU)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    stretch = turn * np.array([length, width]) / 2
    return placed(regular(int(rng.integers(3, 6))), stretch, centre)


def draw(seed, index, label, difficulty=1.0):
    """One 64x64 scene of class `label` as a palette image.

    `difficulty` scales clutter, occlusion, noise and the closeness of colours.
    """
    rng = np.random.default_rng([seed, index, label])
    background = rng.uniform(20, 235, 3)
    distance = max(90 / difficulty * rng.uniform(0.35, 1.6), 18)
    direction = rng.normal(size=3)
    colour = np.clip(background + direction / np.linalg.norm(direction) * distance, 0, 255)
    image = texture(rng, background.astype(np.float32))
    for _ in range(rng.poisson(3 * difficulty)):
        image += mask_of([(clutter(rng), 255)]) * (rng.uniform(0, 255, 3) - image) * rng.uniform(0.4, 1.0)

    outline, hole = SHAPES[CLASSES[label]]
    radius, angle = rng.uniform(9, 25), rng.uniform(0, TAU)
    squash, shear = rng.uniform(0.78, 1.0), rng.uniform(-0.22, 0.22)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = radius * turn @ np.array([[1.0, shear], [0.0, squash]])
    centre = SIZE / 2 + rng.uniform(-1, 1, 2) * max(SIZE / 2 - radius * 0.9, 4)
    polygons = [(placed(outline, matrix, centre), 255)]
    if hole is not None:
        polygons.append((placed(hole, matrix, centre), 0))
    image += mask_of(polygons) * (texture(rng, colour.astype(np.float32)) - image)

    for _ in range(rng.poisson(1.2 * difficulty)):  # strokes in front, small against the shape
        image += mask_of([(clutter(rng), 255)]) * (rng.uniform(0, 255, 3) - image)
    if rng.random() < 0.12:  # glints: tiny saturated spots, rare by design
        spots = [(placed(regular(4), np.eye(2) * rng.uniform(0.6, 1.4), rng.uniform(4, SIZE - 4, 2)), 255)
                 for _ in range(rng.integers(1, 4))]
        image += mask_of(spots) * (255 - image)
    image += rng.normal(0, rng.uniform(1, 11) * difficulty, image.shape)
    picture = Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.1) * difficulty)))
    return picture.quantize(PALETTE, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "calib_data")
    parser.add_argument("--count", type=int, default=640)
    parser.add_argument("--difficulty", type=float, default=1.0)
    options = parser.parse_args()

    images = options.out / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    rows = []
    for index in range(options.count):
        label = index % len(CLASSES)
        name = f"{index:04}.png"
        draw(COMMITTED_SEED, index, label, options.difficulty).save(images / name, optimize=True)
        rows.append((name, label, CLASSES[label]))
    with open(options.out / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "label", "name"))
        writer.writerows(rows)
    (options.out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


if __name__ == "__main__":
    main()
