"""From an image file to a square grey image: decode, validate, resize, encode."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

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

MOST_PIXELS = 100_000_000
"""Size above which a file is taken for a decompression bomb [px]; the largest detectors have 20 million."""

CHEST_MODALITIES = {"CR", "DX", "DR", "RG"}
"""Projection radiography (DICOM PS3.3, C.7.3.1.1.1)."""

GENERIC_MODALITIES = {"", "OT", "SC"}
"""Modalities that say nothing; the body part must then be stated."""

CHEST_BODY_PARTS = ("CHEST", "THORAX", "LUNG")
"""Words in ``BodyPartExamined`` that mean a chest image."""


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

    8 and 16 bits are scaled by their full range, colour becomes luma (ITU-R 601), floating point is kept
    where it lies in [0, 1] and else scaled from its own minimum and maximum.

    Returns:
        ``[H, W]`` in [0, 1].

    Raises:
        Rejected: If the file is no image, truncated, too large, not finite, constant or too small.
    """
    image = _opened(data)
    _check_size(image.height, image.width)
    if image.mode.startswith("I"):
        return _validated(np.asarray(image).astype(np.float32) / np.float32(65535))
    if image.mode == "F":
        return _validated(_unit_range(np.asarray(image)))
    grey = image if image.mode == "L" else image.convert("L")
    return _validated(np.asarray(grey).astype(np.float32) / np.float32(255))


def decode_any(data: bytes) -> npt.NDArray[np.float32]:
    """Decodes a DICOM file, or any other as `decode` does.

    Returns:
        ``[H, W]`` in [0, 1].

    Raises:
        Rejected: As `decode`, `read_dicom` and `decode_dicom`.
    """
    return decode_dicom(read_dicom(data)) if data[128:132] == b"DICM" else decode(data)


def decode_mask(data: bytes) -> npt.NDArray[np.bool_]:
    """Decodes a mask file: true where its grey value is in the upper half of the range.

    Returns:
        ``[H, W]``.

    Raises:
        Rejected: If the file is no image or too large.
    """
    image = _opened(data)
    return np.asarray(image if image.mode == "1" else image.convert("L")).astype(np.uint8) > (
        0 if image.mode == "1" else 127
    )


def read_dicom(data: bytes) -> pydicom.Dataset:
    """Reads a DICOM file and checks that it is a radiograph of a chest.

    Raises:
        Rejected: If it is no DICOM file, holds no pixels, or shows something else.
    """
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
    except Exception as error:  # pydicom raises errors of many kinds on broken files.
        raise Rejected("unreadable", f"{len(data)} bytes, {type(error).__name__}") from error
    if "PixelData" not in dataset:
        raise Rejected("unreadable", "the file holds no pixels")
    modality = str(dataset.get("Modality") or "").strip().upper()
    body_part = str(dataset.get("BodyPartExamined") or "").strip().upper()
    is_chest = any(word in body_part for word in CHEST_BODY_PARTS)
    if body_part and not is_chest:
        raise Rejected("not_chest", f"BodyPartExamined is {body_part}")
    if modality not in CHEST_MODALITIES and not (modality in GENERIC_MODALITIES and is_chest):
        raise Rejected("not_chest", f"Modality is {modality or 'empty'}, body part {body_part or 'empty'}")
    return dataset


def decode_dicom(dataset: pydicom.Dataset) -> npt.NDArray[np.float32]:
    """Grey values of a DICOM file as a viewer shows them: rescaled, windowed, dark air.

    The modality LUT (rescale slope and intercept) comes first, then the file's first window or VOI LUT
    (DICOM PS3.3, C.11.1 and C.11.2); without a window the range of the stored bits is shown. MONOCHROME1
    (0 is white) is inverted.

    Returns:
        ``[H, W]`` in [0, 1].

    Raises:
        Rejected: If the pixels cannot be decoded, or are too large, not finite, constant or too small.
    """
    _check_size(int(dataset.Rows), int(dataset.Columns))
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    try:
        stored = pixel_array(dataset)
        if stored.ndim == 3 and photometric not in ("MONOCHROME1", "MONOCHROME2"):
            return decode(_png_of_colour(stored))
        if stored.ndim != 2:
            raise Rejected("unreadable", f"{stored.ndim}-dimensional pixels")
        values = _displayed(dataset, stored)
    except Rejected:
        raise
    except Exception as error:  # Codecs and LUTs raise errors of many kinds on broken files.
        raise Rejected("unreadable", f"pixels: {type(error).__name__}") from error
    return _validated(1 - values if photometric == "MONOCHROME1" else values)


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


def _check_size(height: int, width: int) -> None:
    if height * width > MOST_PIXELS:
        raise Rejected("too_large", f"{height} x {width} pixels; the limit is {MOST_PIXELS}")
    if min(height, width) < SMALLEST_EDGE:
        raise Rejected("too_small", f"{height} x {width} pixels; the shorter edge needs {SMALLEST_EDGE}")


def _validated(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
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


def _displayed(dataset: pydicom.Dataset, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    bits = int(dataset.BitsStored)
    signed = int(dataset.get("PixelRepresentation", 0)) == 1
    bounds = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    lowest, highest = sorted(apply_modality_lut(bounds, dataset).tolist())
    if dataset.get("ModalityLUTSequence"):
        lowest, highest = 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence") or dataset.get("WindowWidth") is not None:
        values = apply_voi_lut(values, dataset)
        if dataset.get("VOILUTSequence"):
            lowest, highest = 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        elif float(dataset.get("RescaleSlope") or 1) < 0:
            # pydicom maps the window's lower end to the rescaled lowest stored value, here the highest.
            values = lowest + highest - values
    scaled = (values.astype(np.float64) - lowest) / max(highest - lowest, 1e-12)
    return np.asarray(scaled.clip(0, 1), dtype=np.float32)


def _png_of_colour(stored: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(stored.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def _placed(values: npt.NDArray[np.uint8], place: Geometry) -> npt.NDArray[np.uint8]:
    if values.shape == (place.size, place.size):
        return np.ascontiguousarray(values)
    top, left = max(place.top, 0), max(place.left, 0)
    cut_top, cut_left = max(-place.top, 0), max(-place.left, 0)
    part = values[cut_top : cut_top + place.size, cut_left : cut_left + place.size]
    square = np.zeros((place.size, place.size), dtype=np.uint8)
    square[top : top + part.shape[0], left : left + part.shape[1]] = part
    return square
