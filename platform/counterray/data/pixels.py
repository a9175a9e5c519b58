"""From an image file to a square grey image: decode, validate, resize, encode."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Reason = Literal[
    "unreadable",
    "missing_image",
    "label_missing",
    "not_chest",
    "duplicate",
    "constant",
    "not_finite",
    "too_small",
    "too_large",
]
"""Why an image is set aside."""

Fit = Literal["letterbox", "crop"]
"""How a rectangle becomes a square: padded with black, or cut at the longer side's ends."""

SMALLEST_EDGE = 32
"""Edge below which an image holds no chest [px]."""

MOST_PIXELS = 80_000_000
"""Size above which a file is taken for a decompression bomb [px]; the largest detectors have 20 million."""


class Rejected(Exception):
    """An image is to be set aside.

    Attributes:
        reason: The kind of fault.
        detail: What exactly, without identifiers.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Rejected], tuple[Reason, str]]:
        return Rejected, (self.reason, self.detail)


@dataclass(frozen=True)
class Rejection:
    """A row of ``quarantine.parquet``.

    Attributes:
        image_id: The image; an identifier from a DICOM file only as a salted hash.
        reason: The kind of fault.
        detail: What exactly, without identifiers.
    """

    image_id: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Geometry:
    """How an image of ``height`` x ``width`` is placed on a square.

    Attributes:
        size: Edge of the square [px].
        scaled_height: Height after scaling, before padding or cutting [px].
        scaled_width: Width after scaling [px].
        top: Rows of padding above; negative: rows cut off.
        left: Columns of padding at the left; negative: columns cut off.
        scale: New pixels per old pixel; the pixel spacing is divided by it.
    """

    size: int
    scaled_height: int
    scaled_width: int
    top: int
    left: int
    scale: float


def geometry(height: int, width: int, size: int, fit: Fit) -> Geometry:
    """Places a rectangle in the middle of a square, keeping its proportions.

    Args:
        height: Rows [px].
        width: Columns [px].
        size: Edge of the square [px].
        fit: ``letterbox`` or ``crop``.
    """
    scale = size / (max(height, width) if fit == "letterbox" else min(height, width))
    scaled_height, scaled_width = max(1, round(height * scale)), max(1, round(width * scale))
    return Geometry(
        size=size,
        scaled_height=scaled_height,
        scaled_width=scaled_width,
        top=(size - scaled_height) // 2,
        left=(size - scaled_width) // 2,
        scale=scale,
    )


def decode(data: bytes) -> npt.NDArray[np.float32]:
    """Decodes PNG, JPEG, TIFF or anything else that Pillow reads, to grey values.

    8 and 16 bits are scaled by their full range, colour becomes luma (ITU-R 601); wider integers and floating
    point are kept where they lie in [0, 1] and else scaled from their own minimum and maximum.

    Returns:
        ``[H, W]`` in [0, 1].

    Raises:
        Rejected: If the file is no image, truncated, too large, not finite, constant or too small.
    """
    image = _opened(data)
    check_size(image.height, image.width)
    if image.mode.startswith("I;16"):
        return validated(np.asarray(image).astype(np.float32) / np.float32(65535))
    if image.mode in ("I", "F"):
        return validated(_unit_range(np.asarray(image)))
    grey = image if image.mode == "L" else image.convert("L")
    return validated(np.asarray(grey).astype(np.float32) / np.float32(255))


def decode_mask(data: bytes) -> npt.NDArray[np.bool_]:
    """Decodes a mask file: true where its grey value is in the upper half of the range.

    Returns:
        ``[H, W]``.

    Raises:
        Rejected: If the file is no image or too large.
    """
    image = _opened(data)
    if image.mode == "1":
        return np.asarray(image)
    return np.asarray(image.convert("L")) > 127


def resize(values: npt.NDArray[np.float32], place: Geometry) -> npt.NDArray[np.uint8]:
    """Scales with anti-aliasing (Lanczos in floating point, by Pillow), places, and rounds to 8 bits.

    Args:
        values: ``[H, W]`` in [0, 1].
        place: Geometry for this height and width.

    Returns:
        ``[size, size]``; an 8-bit image that already has this size comes back unchanged.
    """
    shape = (place.scaled_height, place.scaled_width)
    if values.shape != shape:
        image = Image.fromarray(values).resize(shape[::-1], Image.Resampling.LANCZOS)
        values = np.asarray(image)
    return _placed(np.rint(values.clip(0, 1) * 255).astype(np.uint8), place)


def resize_mask(mask: npt.NDArray[np.bool_], place: Geometry) -> npt.NDArray[np.bool_]:
    """Scales a binary mask to the nearest pixel, with its image's geometry.

    Args:
        mask: ``[H, W]``.
        place: The image's geometry.

    Returns:
        ``[size, size]``.
    """
    image = Image.fromarray(mask.astype(np.uint8))
    image = image.resize((place.scaled_width, place.scaled_height), Image.Resampling.NEAREST)
    return _placed(np.asarray(image), place).astype(np.bool_)


def encode(values: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]) -> bytes:
    """A PNG file of 8 bits, or of 1 bit for a mask, without any metadata.

    Args:
        values: ``[H, W]``.
    """
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_grey(png: bytes) -> npt.NDArray[np.uint8]:
    """Pixels ``[H, W]`` of an 8-bit or 1-bit PNG file that `encode` wrote."""
    return np.asarray(Image.open(io.BytesIO(png))).astype(np.uint8)


def _opened(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Odd metadata is no fault of the pixels; a bomb is.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if image.height * image.width > MOST_PIXELS:
                raise Rejected(
                    "too_large", f"{image.height} x {image.width} pixels; the limit is {MOST_PIXELS}"
                )
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Rejected("too_large", f"more than {MOST_PIXELS} pixels") from error
    except Rejected:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds on broken files.
        raise Rejected("unreadable", f"{len(data)} bytes, {type(error).__name__}") from error
    return image


def check_size(height: int, width: int) -> None:
    """Rejects an image that is too large or too small, before its pixels are decoded [px]."""
    if height * width > MOST_PIXELS:
        raise Rejected("too_large", f"{height} x {width} pixels; the limit is {MOST_PIXELS}")
    if min(height, width) < SMALLEST_EDGE:
        raise Rejected("too_small", f"{height} x {width} pixels; the shorter edge needs {SMALLEST_EDGE}")


def validated(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rejects grey values ``[H, W]`` that are not finite or show nothing; gives back the others."""
    if not np.isfinite(values).all():
        raise Rejected("not_finite", "a pixel is NaN or infinite")
    lowest, highest = float(values.min()), float(values.max())
    if round(highest * 255) == round(lowest * 255):
        raise Rejected("constant", f"every pixel has nearly the value {lowest:.3f} of [0, 1]")
    return values


def _unit_range(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    lowest, highest = float(values.min()), float(values.max())
    if (lowest >= 0 and highest <= 1) or not np.isfinite([lowest, highest]).all():
        return values.astype(np.float32)
    return ((values - lowest) / max(highest - lowest, 1e-12)).astype(np.float32)


def _placed(values: npt.NDArray[np.uint8], place: Geometry) -> npt.NDArray[np.uint8]:
    if values.shape == (place.size, place.size):
        return np.ascontiguousarray(values)
    top, left = max(place.top, 0), max(place.left, 0)
    cut_top, cut_left = max(-place.top, 0), max(-place.left, 0)
    part = values[cut_top : cut_top + place.size, cut_left : cut_left + place.size]
    square = np.zeros((place.size, place.size), dtype=np.uint8)
    square[top : top + part.shape[0], left : left + part.shape[1]] = part
    return square
