#!/usr/bin/env python3
"""Draws the pictures of tests/fixtures/images and writes what Pillow makes of them.

Each `NAME.ext` is an image file, `NAME.npy` the uint8 array [height, width, 3] of Pillow's
`ImageOps.exif_transpose(image).convert("RGB")`. `resize.npz` holds one source picture and its resized versions,
`preprocess.npz` whole preprocessing chains in float32. Needs Pillow and NumPy; made with Pillow 13.0.0.

    python3 scripts/make_image_fixtures.py
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "images"
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# (width, height): reduced, enlarged, mixed, one axis only, a single pixel, rows last (Pillow 13).
SIZES = [(17, 11), (71, 60), (13, 60), (47, 20), (30, 33), (1, 1), (44, 12)]


def drawing(width, height, seed=0):
    """Gradients, hard edges and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 3.0 + y / 5.0)], axis=-1)
    image = Image.fromarray(np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse([width * 0.2, height * 0.2, width * 0.6, height * 0.7], fill=(220, 30, 40))
    draw.rectangle([width * 0.5, height * 0.5, width * 0.9, height * 0.8], fill=(10, 90, 240))
    draw.line([0, height, width, 0], fill=(255, 255, 255), width=2)
    return image


def expect(name, data, array=None):
    """Stores an image file and its pixels."""
    stem = name.rsplit(".", 1)[0]
    (OUT / name).write_bytes(data)
    if array is None:
        with Image.open(io.BytesIO(data)) as image:
            array = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.save(OUT / f"{stem}.npy", array)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width, height, depth, colour, rows):
    """A PNG that Pillow cannot write: any bit depth and colour type, unfiltered rows."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpegs():
    image = drawing(45, 37)
    expect("jpeg_444.jpg", encoded(image, "JPEG", quality=90, subsampling=0))
    expect("jpeg_420.jpg", encoded(image, "JPEG", quality=90, subsampling=2))
    expect("jpeg_progressive.jpg", encoded(image, "JPEG", quality=85, progressive=True, subsampling=0))
    expect("jpeg_grey.jpg", encoded(image.convert("L"), "JPEG", quality=90))
    expect("jpeg_cmyk.jpg", encoded(image.convert("CMYK"), "JPEG", quality=90))
    ycck = encoded(image.convert("CMYK"), "JPEG", quality=90)
    at = ycck.index(b"Adobe") + 11
    # The same samples declared as YCCK: Adobe's colour transform 2.
    expect("jpeg_ycck.jpg", ycck[:at] + b"\x02" + ycck[at + 1 :])
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        small = drawing(21, 14)
        expect(f"jpeg_exif{orientation}.jpg", encoded(small, "JPEG", quality=90, subsampling=0, exif=exif))
    whole = encoded(image, "JPEG", quality=90)
    (OUT / "bad_truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    huge = bytearray(encoded(image, "JPEG"))
    at = huge.index(b"\xff\xc0") + 5
    huge[at : at + 4] = struct.pack(">HH", 30000, 30000)
    (OUT / "bad_huge.jpg").write_bytes(huge)


def pngs():
    image = drawing(23, 19)
    pixels = np.asarray(image)
    alpha = np.tile(np.linspace(0, 255, 23, dtype=np.uint8), (19, 1))
    expect("png_rgba.png", encoded(Image.fromarray(np.dstack([pixels, alpha])), "PNG"))
    grey = np.asarray(image.convert("L"))
    expect("png_la.png", encoded(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]), "PNG"))
    palette = image.quantize(17)
    expect("png_palette.png", encoded(palette, "PNG"))
    expect("png_palette_alpha.png", encoded(palette, "PNG", transparency=3))
    expect("png_1bit.png", encoded(image.convert("1"), "PNG"))
    nibbles = grey >> 4
    rows = [bytes((int(a) << 4 | int(b)) for a, b in zip(row[0::2], np.append(row[1::2], 0))) for row in nibbles]
    expect("png_grey4.png", png(23, 19, 4, 0, rows))
    wide = pixels.astype(np.uint16) * 257 - 60 * (pixels > 0)
    expect("png_rgb16.png", png(23, 19, 16, 2, [row.astype(">u2").tobytes() for row in wide]))
    # Pillow clips 16-bit grey at 255; the rule here is the high byte, as it is for colour.
    wide = grey.astype(np.uint16) * 200 + 131
    high = np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, axis=2)
    expect("png_grey16.png", png(23, 19, 16, 0, [row.astype(">u2").tobytes() for row in wide]), high)
    expect("png_one_pixel.png", encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"))
    whole = encoded(image, "PNG")
    (OUT / "bad_truncated.png").write_bytes(whole[: len(whole) // 2])
    (OUT / "bad_huge.png").write_bytes(png(30000, 30000, 8, 2, [b""]))


def others():
    image = drawing(33, 26)
    expect("webp_lossless.webp", encoded(image, "WEBP", lossless=True))
    expect("webp_lossy.webp", encoded(image, "WEBP", quality=80))
    with_alpha = image.copy()
    with_alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    expect("webp_alpha.webp", encoded(with_alpha, "WEBP", lossless=True, exact=True))
    frames = [drawing(20, 15, seed) for seed in range(3)]
    animated = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, duration=50)
    expect("webp_animated.webp", animated)
    expect("bmp_24.bmp", encoded(image, "BMP"))
    expect("bmp_palette.bmp", encoded(image.quantize(16), "BMP"))
    (OUT / "bad_text.jpg").write_bytes(b"this is no image\n")
    (OUT / "bad_empty.jpg").write_bytes(b"")


def resized():
    source = drawing(47, 33)
    arrays = {"source": np.asarray(source)}
    for name, number in FILTERS.items():
        for width, height in SIZES:
            arrays[f"{name}_{width}x{height}"] = np.asarray(source.resize((width, height), number))
            if (width, height) == (17, 11):
                arrays[f"{name}_grey_17x11"] = np.asarray(source.convert("L").resize((width, height), number))
    large = drawing(301, 223, 5)
    arrays["large"] = np.asarray(large)
    for name, number in FILTERS.items():
        arrays[f"{name}_large"] = np.asarray(large.resize((50, 37), number))
    np.savez_compressed(OUT / "resize.npz", **arrays)


def short_side(image, size, number):
    width, height = image.size
    short, long = min(width, height), max(width, height)
    long = int(size * long / short)
    return image.resize((size, long) if width <= height else (long, size), number)


def centre_crop(image, size):
    """torchvision's: pads with zeros where the picture is smaller, rounds half to even."""
    width, height = image.size
    if size > width or size > height:
        left, top = max(size - width, 0) // 2, max(size - height, 0) // 2
        padded = Image.new("RGB", (max(size, width), max(size, height)))
        padded.paste(image, (left, top))
        image = padded
        width, height = image.size
    top, left = int(round((height - size) / 2.0)), int(round((width - size) / 2.0))
    return image.crop((left, top, left + size, top + size))


def preprocessed():
    arrays = {}
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    for width, height in [(61, 43), (40, 71), (33, 34), (20, 90)]:
        image = drawing(width, height)
        key = f"{width}x{height}"
        arrays[f"source_{key}"] = np.asarray(image)
        crop = np.asarray(centre_crop(short_side(image, 36, FILTERS["bilinear"]), 32), np.float32)
        chain = (crop / np.float32(255) - mean) / std
        arrays[f"imagenet_{key}"] = np.ascontiguousarray(chain.transpose(2, 0, 1))[None]
        crop = np.asarray(centre_crop(short_side(image, 36, FILTERS["bicubic"]), 32), np.float32)
        arrays[f"imagenet-lite_{key}"] = ((crop - np.float32(127)) / np.float32(128))[None]
        padded = np.asarray(centre_crop(image, 48), np.float32)
        arrays[f"padded_{key}"] = padded.transpose(2, 0, 1)[None].astype(np.uint8)
        grey = np.asarray(image.convert("L").resize((16, 16), FILTERS["bilinear"]), np.float32)
        arrays[f"unit_{key}"] = (grey / np.float32(255))[None, None].astype(np.float16)
    np.savez_compressed(OUT / "preprocess.npz", **arrays)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    jpegs()
    pngs()
    others()
    resized()
    preprocessed()
