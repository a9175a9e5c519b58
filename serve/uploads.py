"""Image files from strangers: told apart, bounded, decoded, and brought to a model's size."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image

from counterray.data.dicom import decode_dicom, read_dicom
from counterray.data.pixels import Rejected, decode, geometry, resize
from serve.problems import ProblemError
from serve.settings import UploadSettings

_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_DICOM_AT = 128
_DEFLATED = b"1.2.840.10008.1.2.1.99"
"""Transfer syntax whose whole dataset is compressed, which pydicom unpacks without a limit."""

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "P", "RGB", "RGBA")
_BASE64 = re.compile(r"data:[a-z/+.-]{1,40};base64,", re.IGNORECASE)


def read_base64(text: str, settings: UploadSettings) -> bytes:
    """The bytes of an image file in base64, with or without the head of a data URI.

    Raises:
        ProblemError: If it is no base64, or too large.
    """
    head = _BASE64.match(text)
    body = text[head.end() :] if head else text
    if len(body) > (settings.most_bytes + 2) // 3 * 4 + 4:
        raise _too_large(len(body) * 3 // 4, settings)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProblemError("unreadable-image", "The field image is no valid base64.") from error


def read_image(data: bytes, settings: UploadSettings) -> NDArray[np.float32]:
    """Grey values ``[H, W]`` in [0, 1] of a PNG, JPEG or DICOM file.

    Time and memory are bounded by the limits on bytes and pixels: headers are read and checked before any
    pixel is unpacked.

    Raises:
        ProblemError: If it is too large, something else, damaged, or no radiograph.
    """
    if len(data) > settings.most_bytes:
        raise _too_large(len(data), settings)
    is_dicom = data[_DICOM_AT : _DICOM_AT + 4] == b"DICM"
    is_picture = data.startswith((_PNG, _JPEG))
    if is_dicom == is_picture:
        what = "several kinds of file at once" if is_dicom else "neither PNG, JPEG nor DICOM"
        raise ProblemError("unreadable-image", f"The file is {what}.")
    try:
        if is_dicom:
            return decode_dicom(_checked_dicom(data, settings))
        _check_picture(data, settings)
        return decode(data)
    except Rejected as error:
        kind = "too-large" if error.reason == "too_large" else "unreadable-image"
        raise ProblemError(kind, f"The image was refused: {error.reason}, {error.detail}.") from None
    except ProblemError:
        raise
    except Exception as error:  # Broken headers raise errors of many kinds wherever a value is read.
        raise ProblemError("unreadable-image", f"The file is damaged ({type(error).__name__}).") from None


def to_model_size(values: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Grey values ``[size, size]`` of ``[H, W]`` in [0, 1], as ingest places them: padded with black."""
    height, width = values.shape
    return resize(values, geometry(height, width, size, "letterbox"))


def _check_picture(data: bytes, settings: UploadSettings) -> None:
    end = _PNG_END if data.startswith(_PNG) else _JPEG_END
    if not data.rstrip(b"\0\r\n ").endswith(end.rstrip(b"\0\r\n ")):
        raise ProblemError("unreadable-image", "The file does not end where its image ends.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    _check_pixels(image.height, image.width, settings)
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise ProblemError("unreadable-image", f"The file is animated ({frames} frames); send one image.")
    if image.mode not in _GREY_MODES:
        raise ProblemError("unreadable-image", f"Its colours are {image.mode}; send grey or RGB.")
    image.verify()  # Of a PNG every chunk's checksum, which decoding passes over in the pixels.


def _checked_dicom(data: bytes, settings: UploadSettings) -> pydicom.Dataset:
    if _DEFLATED in data:
        raise ProblemError("unreadable-image", "Deflated DICOM is not taken; send it uncompressed.")
    dataset = read_dicom(data)
    _check_pixels(int(dataset.Rows), int(dataset.Columns), settings)
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    if frames != 1:
        raise ProblemError("unreadable-image", f"The file has {frames} frames; send one image.")
    if samples not in (1, 3) or int(dataset.get("BitsAllocated") or 0) not in (8, 16):
        raise ProblemError("unreadable-image", "Its pixels are neither grey nor RGB of 8 or 16 bits.")
    return dataset


def _check_pixels(height: int, width: int, settings: UploadSettings) -> None:
    if height * width > settings.most_pixels:
        raise ProblemError(
            "too-large", f"The image has {height} x {width} pixels; the limit is {settings.most_pixels}."
        )


def _too_large(size: int, settings: UploadSettings) -> ProblemError:
    return ProblemError(
        "too-large", f"The image file has {size} bytes; the limit is {settings.most_bytes} bytes."
    )
