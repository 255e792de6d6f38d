#!/usr/bin/env python3
"""Train the demo classifier on freshly drawn images and export it to ONNX.

Usage: train_demo_model.py [--out calib_data/demo.onnx]

Training images use other seeds than the committed ones. A GPU trains in about two
minutes; weights differ in the last digits between GPUs and library versions, so a
new model is equivalent to the committed one, not byte-identical.
"""

import argparse
import os
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from make_demo_data import CLASSES, SIZE, draw
from unbalance_demo_model import MEAN, STD, TRAIN_SEED, unbalance

VALIDATION_SEED = 2
# (expansion, output channels, stride, activation)
BLOCKS = (
    (1, 16, 1, nn.ReLU6),
    (3, 24, 2, nn.ReLU),
    (3, 24, 1, nn.ReLU),
    (3, 32, 2, nn.ReLU),
    (3, 32, 1, nn.ReLU6),
    (3, 32, 1, nn.Hardswish),
    (4, 48, 2, nn.Hardswish),
    (4, 48, 1, nn.Hardswish),
)


class ConvBlock(nn.Module):
    """Convolution, batch norm and, unless it is linear, an activation."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1, activation=None):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = activation() if activation else nn.Identity()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))

    def fold(self):
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()


class Inverted(nn.Module):
    """Inverted residual: expand, depthwise, linear projection."""

    def __init__(self, inputs, outputs, expansion, stride, activation):
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = ConvBlock(inputs, hidden, 1, activation=activation) if expansion > 1 else nn.Identity()
        self.depthwise = ConvBlock(hidden, hidden, 3, stride, hidden, activation)
        self.project = ConvBlock(hidden, outputs, 1)

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class DemoNet(nn.Module):
    """A MobileNet-like classifier of about 70 thousand weights."""

    def __init__(self, width=1.0):
        super().__init__()
        scaled = lambda channels: int(channels * width + 4) // 8 * 8
        channels = scaled(16)
        self.stem = ConvBlock(3, channels, 3, 2, activation=nn.Hardswish)
        self.blocks = nn.Sequential()
        for expansion, outputs, stride, activation in BLOCKS:
            self.blocks.append(Inverted(channels, scaled(outputs), expansion, stride, activation))
            channels = scaled(outputs)
        self.head = ConvBlock(channels, scaled(128), 1, activation=nn.Hardswish)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(scaled(128), len(CLASSES))

    def forward(self, x):
        return self.classifier(torch.flatten(self.pool(self.head(self.blocks(self.stem(x)))), 1))


def drawn(job):
    """Pixels of one training image, 3xSIZExSIZE, uint8."""
    return np.asarray(draw(*job).convert("RGB")).transpose(2, 0, 1)


def dataset(seed, count, difficulty, workers):
    """`count` images and their labels."""
    labels = np.arange(count) % len(CLASSES)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    with Pool(workers) as pool:
        jobs = ((seed, i, int(label), difficulty) for i, label in enumerate(labels))
        for i, image in enumerate(pool.imap(drawn, jobs, chunksize=256)):
            images[i] = image
    return torch.from_numpy(images), torch.from_numpy(labels)


def accuracy(model, images, labels):
    model.eval()
    with torch.no_grad():
        parts = [model(normalized(x)).argmax(1) for x in images.split(2048)]
    return (torch.cat(parts) == labels).float().mean().item()


def normalized(images):
    return ((images.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def train(model, images, labels, validation, epochs, batch=512):
    """AdamW with a one-cycle schedule; returns the model in evaluation mode."""
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, epochs=epochs, steps_per_epoch=steps)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images), device=images.device)
        started, total = time.time(), 0.0
        for index in order[: steps * batch].split(batch):
            loss = nn.functional.cross_entropy(model(normalized(images[index])), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        if epoch % 4 == 3 or epoch == epochs - 1:
            print(f"epoch {epoch + 1}: loss {total.item() / steps:.3f}, top-1 {accuracy(model, *validation):.4f}, "
                  f"{time.time() - started:.1f} s", flush=True)
    return model.eval()


def export(model, path):
    """Fold batch norms and write plain ONNX with readable initializer names."""
    model = model.cpu().eval()
    for module in model.modules():
        if isinstance(module, ConvBlock):
            module.fold()
    torch.onnx.export(
        model, (torch.zeros(1, 3, SIZE, SIZE),), str(path), opset_version=17, dynamo=False,
        input_names=["input"], output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}})
    unbalance(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "calib_data" / "demo.onnx")
    parser.add_argument("--images", type=int, default=80_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--difficulty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.time()
    images, labels = (t.to(device) for t in dataset(TRAIN_SEED, options.images, options.difficulty, options.workers))
    validation = [t.to(device) for t in dataset(VALIDATION_SEED, 10_000, options.difficulty, options.workers)]
    print(f"drew {len(images)} images in {time.time() - started:.0f} s", flush=True)
    model = DemoNet(options.width).to(device).to(memory_format=torch.channels_last)
    train(model, images, labels, validation, options.epochs)
    export(model, options.out)
    print(f"wrote {options.out}: {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
