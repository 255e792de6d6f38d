"""Photos as EfficientNet-Lite0 and YOLOX-Nano take them, by Pillow: what peers are given in these benchmarks."""

import numpy as np
from onnxruntime.quantization import CalibrationDataReader
from PIL import Image


def load(folder, name):
    """One photo as an input of shape (1, 3, 224, 224): shorter side 256, centre crop, values from -1 to 1."""
    image = Image.open(f"{folder}/{name}").convert("RGB")
    w, h = image.size
    image = image.resize((256, int(256 * h / w)) if w <= h else (int(256 * w / h), 256), Image.BICUBIC)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    x = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    return ((x - 127) / 128).transpose(2, 0, 1)[None]


def letterboxed(path, side=416):
    """One photo as an input of shape (1, 3, side, side): at the top left, padded with 114, blue first, values from 0 to 255."""
    image = Image.open(path).convert("RGB")
    ratio = min(side / image.width, side / image.height)
    image = image.resize((int(image.width * ratio), int(image.height * ratio)), Image.BILINEAR)
    x = np.full((side, side, 3), 114, np.float32)
    x[: image.height, : image.width] = np.asarray(image)[:, :, ::-1]
    return x.transpose(2, 0, 1)[None]


class Reader(CalibrationDataReader):
    """Photos one by one, for onnxruntime.quantization."""

    def __init__(self, folder, names):
        self.folder, self.names = folder, iter(names)

    def get_next(self):
        name = next(self.names, None)
        return None if name is None else {"input": load(self.folder, name)}
