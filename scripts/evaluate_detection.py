#!/usr/bin/env python3
"""COCO's figures of YOLOX-Nano and FastestDet with OpenCV, NumPy, ONNX Runtime and pycocotools, to hold `calib`'s against.

    python3 scripts/evaluate_detection.py MODEL.onnx DATA.yaml [IDS.txt]

MODEL is YOLOX-Nano (input `images`) or FastestDet (input `input.1`), DATA an Ultralytics `data.yaml`, IDS a file with the
names of the pictures that count, one a line. Boxes: NMS by class at IoU 0.7, scores from 0.001, every class that reaches it,
at most 300. Prints the twelve figures. Needs opencv-python-headless, numpy, onnxruntime, pycocotools and PyYAML.
"""

import contextlib
import io
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import yaml
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SCORE, IOU, MOST = 0.001, 0.7, 300


def nms(boxes, scores, classes):
    order = np.argsort(-scores, kind="stable")
    kept = []
    area = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
    alive = np.ones(len(boxes), bool)
    for i in order:
        if not alive[i]:
            continue
        kept.append(i)
        if len(kept) == MOST:
            break
        w = np.minimum(boxes[i, 2], boxes[:, 2]) - np.maximum(boxes[i, 0], boxes[:, 0])
        h = np.minimum(boxes[i, 3], boxes[:, 3]) - np.maximum(boxes[i, 1], boxes[:, 1])
        common = np.maximum(w, 0) * np.maximum(h, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = common / (area[i] + area - common)
        alive &= ~((iou > IOU) & (classes == classes[i]))
    return kept


def yolox(session, bgr):
    height, width = bgr.shape[:2]
    ratio = min(416 / height, 416 / width)
    framed = np.full((416, 416, 3), 114, np.uint8)
    small = cv2.resize(bgr, (int(width * ratio), int(height * ratio)), interpolation=cv2.INTER_LINEAR)
    framed[: small.shape[0], : small.shape[1]] = small
    out = session.run(None, {"images": framed.transpose(2, 0, 1)[None].astype(np.float32)})[0][0].astype(np.float64)
    grid = [(x, y, s) for s in (8, 16, 32) for y in range(416 // s) for x in range(416 // s)]
    grid = np.array(grid, float)
    centre, size = (out[:, :2] + grid[:, :2]) * grid[:, 2:], np.exp(out[:, 2:4]) * grid[:, 2:]
    return np.hstack([centre - size / 2, centre + size / 2]) / ratio, out[:, 4:5] * out[:, 5:]


def fastestdet(session, bgr):
    height, width = bgr.shape[:2]
    small = cv2.resize(bgr, (352, 352), interpolation=cv2.INTER_LINEAR)
    out = session.run(None, {"input.1": small.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)})[0][0]
    out = out.astype(np.float64).reshape(85, -1).T
    cell = np.array([(x, y) for y in range(22) for x in range(22)], float)
    centre = (cell + np.tanh(out[:, 1:3])) / 22
    size = 1 / (1 + np.exp(-out[:, 3:5]))
    boxes = np.hstack([centre - size / 2, centre + size / 2]) * [width, height, width, height]
    return boxes, out[:, :1] ** 0.6 * out[:, 5:] ** 0.4


def main(model, data, ids=None):
    data = Path(data)
    config = yaml.safe_load(data.read_text())
    root = data.parent / config.get("path", ".")
    files = sorted(p for p in (root / config["val"]).iterdir() if p.suffix == ".jpg")
    if ids:
        wanted = {Path(line).name for line in Path(ids).read_text().split()}
        files = [p for p in files if p.name in wanted]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    find = yolox if session.get_inputs()[0].name == "images" else fastestdet
    images, annotations, results = [], [], []
    for number, file in enumerate(files, 1):
        bgr = cv2.imread(str(file))
        height, width = bgr.shape[:2]
        images.append({"id": number, "width": width, "height": height})
        label = root / "labels" / f"{file.stem}.txt"
        for line in label.read_text().splitlines() if label.exists() else []:
            c, x, y, w, h = map(float, line.split()[:5])
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": int(c), "bbox": box,
                                "area": box[2] * box[3], "iscrowd": 0})
        boxes, scores = find(session, bgr)
        row, cls = np.nonzero(scores > SCORE)
        boxes, scores = boxes[row], scores[row, cls]
        for i in nms(boxes, scores, cls):
            b = np.clip(boxes[i], 0, [width, height, width, height])
            results.append({"image_id": number, "category_id": int(cls[i]), "score": float(scores[i]),
                            "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        categories = [{"id": int(c)} for c in config["names"]]
        truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
        truth.createIndex()
        ev = COCOeval(truth, truth.loadRes(results), "bbox")
        ev.evaluate()
        ev.accumulate()
        ev.summarize()
    print(len(images), " ".join(f"{s:.6f}" for s in ev.stats))


if __name__ == "__main__":
    main(*sys.argv[1:])
