#!/usr/bin/env python3
"""Writes tests/fixtures/detection/coco.json: boxes, labels and what pycocotools makes of them, on random and hard cases.

Each case has `pictures` of `found` [x1, y1, x2, y2, score, class] and `truths` [x1, y1, x2, y2, class, area, crowd], the
twelve `figures` (null where none falls under one), and `by_class` [class, AP 50-95, AP 50]. Numbers are float32.
Needs NumPy and pycocotools; made with pycocotools 2.0.10.

    python3 scripts/make_coco_fixtures.py
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "detection" / "coco.json"


def evaluate(pictures):
    images, annotations, results = [], [], []
    classes = {int(f[5]) for p in pictures for f in p["found"]} | {int(t[4]) for p in pictures for t in p["truths"]}
    for number, picture in enumerate(pictures, 1):
        images.append({"id": number, "width": 640, "height": 640})
        for x1, y1, x2, y2, c, area, crowd in picture["truths"]:
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": int(c), "bbox": box, "area": area,
                 "iscrowd": int(crowd)}
            )
        for x1, y1, x2, y2, score, c in picture["found"]:
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": number, "category_id": int(c), "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": c} for c in sorted(classes)]}
        truth.createIndex()
        ev = COCOeval(truth, truth.loadRes(results), "bbox")
        ev.evaluate()
        ev.accumulate()
        ev.summarize()
    precision = ev.eval["precision"]
    by_class = []
    for k, c in enumerate(ev.params.catIds):
        p = precision[:, :, k, 0, 2]
        if (p > -1).any():
            by_class.append([int(c), float(p.mean()), float(p[0].mean())])
    return {"figures": [None if s == -1 else float(s) for s in ev.stats], "by_class": by_class}


def f32(x):
    return float(np.float32(x))


def scene(rng, pictures, classes, labels, boxes, side=500, coarse=False, crowds=0.0, levels=None):
    """Labels, and boxes that are moved labels or strangers; `coarse` puts everything on a grid, so that overlaps tie."""
    result = []
    for _ in range(pictures):
        truths = []
        for _ in range(rng.integers(0, labels + 1)):
            w, h = np.exp(rng.uniform(np.log(6), np.log(side * 0.8), 2))
            x, y = rng.uniform(0, side - w), rng.uniform(0, side - h)
            b = np.array([x, y, x + w, y + h])
            if coarse:
                b = np.round(b / 20) * 20 + [0, 0, 20, 20]
            b = [f32(v) for v in b]
            area = (b[2] - b[0]) * (b[3] - b[1]) * (0.6 if rng.random() < 0.3 else 1.0)
            truths.append([*b, int(rng.integers(classes)), area, bool(rng.random() < crowds)])
        found = []
        for _ in range(rng.integers(0, boxes + 1)):
            if truths and rng.random() < 0.7:
                t = truths[rng.integers(len(truths))]
                size = [t[2] - t[0], t[3] - t[1]] * 2
                b = np.array(t[:4]) + rng.normal(0, rng.choice([0.0, 0.03, 0.15]), 4) * size
                c = t[4] if rng.random() < 0.8 else int(rng.integers(classes))
            else:
                b, c = np.sort(rng.uniform(0, side, (2, 2)), axis=0).reshape(-1), int(rng.integers(classes))
            if coarse:
                b = np.round(b / 20) * 20
            score = rng.random() if levels is None else rng.integers(1, levels + 1) / levels
            found.append([*(f32(v) for v in b), f32(score), c])
        result.append({"found": found, "truths": truths})
    return result


def cases():
    rng = np.random.default_rng(2017)
    box = [10.0, 10.0, 60.0, 60.0]
    yield "random", scene(rng, 20, 5, 8, 25)
    yield "crowds", scene(rng, 12, 3, 8, 25, crowds=0.4)
    yield "tied scores and overlaps", scene(rng, 12, 3, 6, 20, coarse=True, levels=3)
    yield "many boxes of one class", scene(rng, 2, 1, 30, 260)
    yield "few labels, many classes", scene(rng, 10, 40, 3, 15)
    yield "pictures without labels or boxes", [
        {"found": [], "truths": []},
        {"found": [[*box, 0.5, 0]], "truths": []},
        {"found": [], "truths": [[*box, 0, 2500.0, False]]},
        {"found": [[*box, 0.25, 0], [*box, 0.75, 1]], "truths": [[*box, 0, 2500.0, False]]},
    ]
    yield "borders of the areas", [
        {
            "found": [[0.0, 0.0, s, s, 0.9, 0] for s in (32.0, 96.0, 31.0, 97.0)],
            "truths": [[0.0, 0.0, s, s, 0, s * s, False] for s in (32.0, 96.0, 33.0, 95.0)],
        }
    ]
    yield "only crowds", [{"found": [[*box, 0.5, 0]], "truths": [[*box, 0, 2500.0, True]]},
                          {"found": [[*box, 0.5, 1]], "truths": [[*box, 1, 2500.0, False]]}]
    yield "overlaps at a threshold", [
        {"found": [[0.0, 0.0, 100.0, h, 0.5 + h / 1000, 0]], "truths": [[0.0, 0.0, 100.0, 100.0, 0, 1e4, False]]}
        for h in (50.0, 55.0, 60.0, 65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 49.0)
    ]


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    found = [{"name": name, "pictures": pictures, **evaluate(pictures)} for name, pictures in cases()]
    OUT.write_text(json.dumps(found, separators=(",", ":")) + "\n")
