"""Small pictures for tests that need some image file: grey, smooth, and different for every seed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def radiograph(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Grey values [H, W] of 8 bits."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def image_bytes(values: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format=kind)
    return buffer.getvalue()


def write_image(path: Path, seed: int, height: int = 64, width: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "JPEG" if path.suffix == ".jpg" else "PNG"
    path.write_bytes(image_bytes(radiograph(seed, height, width), kind))
    return path
