"""Image files from strangers, told apart, bounded and decoded: what a decoder's process runs.

Imports little, so that a process is there at once and holds little: neither torch nor Ray.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless

from counterray.data.dicom import decode_dicom, read_dicom
from counterray.data.pixels import Rejected, decode, geometry, resize

_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_JPEG_SCAN, _MOST_SCANS = b"\xff\xda", 100
"""A scan of a progressive JPEG costs a pass over all pixels, few as its bytes may be; encoders write 10."""

_DICOM_AT = 128
_DICOM_ITEMS, _MOST_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"), 1000
"""Heads of a sequence's items, of which each becomes a dataset of its own; radiographs have some tens."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
"""Transfer syntax whose whole dataset is compressed, which pydicom unpacks without a limit."""

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "P", "RGB", "RGBA")
_BASE64 = re.compile(r"data:[a-z/+.-]{1,40};base64,", re.IGNORECASE)

_GRACE_SECONDS = 2
"""After the time limit, a process that nobody has ended ends itself: its gateway is gone."""


@dataclass(frozen=True)
class Limits:
    """What decoding one image may take.

    Attributes:
        pixels: Of the image.
        seconds: Time.
        memory: Beyond what the process holds before [bytes].
    """

    pixels: int
    seconds: float
    memory: int


class _DecoderProcess(SpawnProcess):
    """Imports what it runs, not also the program that started it, such as Ray's worker."""

    def start(self) -> None:
        with _starting:
            program = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = program


_starting = threading.Lock()


class DecoderContext(SpawnContext):
    """How decoders' processes are started."""

    Process = _DecoderProcess


def start() -> None:
    """Readies a decoder's process: it ends at once when told to, also within a codec."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def decode_image(file: bytes | str, size: int, limits: Limits) -> NDArray[np.uint8]:
    """Grey values ``[size, size]`` of a file, or of its base64, in a process of its own that may be ended.

    Raises:
        Rejected: If it is too large, something else, damaged, or no radiograph.
    """
    signal.alarm(ceil(limits.seconds) + _GRACE_SECONDS)
    try:
        with _memory(limits.memory):
            data = read_base64(file) if isinstance(file, str) else file
            return to_model_size(read_image(data, limits.pixels), size)
    except MemoryError:
        raise _takes_too_much() from None
    finally:
        signal.alarm(0)


def read_base64(text: str) -> bytes:
    """The bytes of a file in base64, with or without the head of a data URI.

    Raises:
        Rejected: If it is no base64.
    """
    head = _BASE64.match(text)
    try:
        return base64.b64decode(text[head.end() :] if head else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Rejected("unreadable", "the field image is no valid base64") from error


def read_image(data: bytes, most_pixels: int) -> NDArray[np.float32]:
    """Grey values ``[H, W]`` in [0, 1] of a PNG, JPEG or DICOM file.

    What headers say is checked before any pixel is unpacked.

    Raises:
        Rejected: If it is too large, something else, damaged, or no radiograph.
    """
    is_dicom = data[_DICOM_AT : _DICOM_AT + 4] == b"DICM"
    is_picture = data.startswith((_PNG, _JPEG))
    if is_dicom == is_picture:
        what = "several kinds of file at once" if is_dicom else "neither PNG, JPEG nor DICOM"
        raise Rejected("unreadable", f"the file is {what}")
    try:
        if is_dicom:
            return decode_dicom(_checked_dicom(data, most_pixels))
        _check_picture(data, most_pixels)
        return decode(data)
    except Rejected as error:
        if isinstance(error.__cause__, MemoryError):
            raise _takes_too_much() from None
        raise
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise Rejected("too_large", f"far more pixels than the limit, {most_pixels}") from None
    except Exception as error:  # Broken headers raise errors of many kinds wherever a value is read.
        raise Rejected("unreadable", f"the file is damaged ({type(error).__name__})") from None


def to_model_size(values: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Grey values ``[size, size]`` of ``[H, W]`` in [0, 1], as ingest places them: padded with black."""
    height, width = values.shape
    return resize(values, geometry(height, width, size, "letterbox"))


def _check_picture(data: bytes, most_pixels: int) -> None:
    end = _PNG_END if data.startswith(_PNG) else _JPEG_END
    if not data.rstrip(b"\0\r\n ").endswith(end.rstrip(b"\0\r\n ")):
        raise Rejected("unreadable", "the file does not end where its image ends")
    if data.startswith(_JPEG):
        _check_scans(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    _check_pixels(image.height, image.width, most_pixels)
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise Rejected("unreadable", f"the file is animated ({frames} frames); send one image")
    if image.mode not in _GREY_MODES:
        raise Rejected("unreadable", f"its colours are {image.mode}; send grey or RGB")
    image.verify()  # Of a PNG every chunk's checksum, which decoding passes over in the pixels.


def _checked_dicom(data: bytes, most_pixels: int) -> pydicom.Dataset:
    if _DEFLATED in data:
        raise Rejected("unreadable", "deflated DICOM is not taken; send it uncompressed")
    items = max(data.count(head) for head in _DICOM_ITEMS)
    if items > _MOST_ITEMS:
        raise Rejected("unreadable", f"its sequences have {items} items; the limit is {_MOST_ITEMS}")
    dataset = read_dicom(data)
    height, width = int(dataset.Rows), int(dataset.Columns)
    _check_pixels(height, width, most_pixels)
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    if frames != 1:
        raise Rejected("unreadable", f"the file has {frames} frames; send one image")
    if samples not in (1, 3) or int(dataset.get("BitsAllocated") or 0) not in (8, 16):
        raise Rejected("unreadable", "its pixels are neither grey nor RGB of 8 or 16 bits")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:  # RLE holds no size but the header's.
        _check_frame(next(generate_frames(dataset.PixelData, number_of_frames=1)), height, width)
    return dataset


def _check_frame(frame: bytes, height: int, width: int) -> None:
    """Refuses a compressed image of another size than the DICOM header's: codecs would unpack it whole."""
    if frame.startswith(_JPEG):
        _check_scans(frame)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000"))
    except UnidentifiedImageError:
        raise Rejected("unreadable", "its pixels are compressed as neither JPEG nor JPEG 2000") from None
    if (image.height, image.width) != (height, width):
        raise Rejected(
            "unreadable",
            f"its compressed image has {image.height} x {image.width} pixels, its header {height} x {width}",
        )


def _check_scans(data: bytes) -> None:
    if (scans := data.count(_JPEG_SCAN)) > _MOST_SCANS:
        raise Rejected("unreadable", f"the JPEG has {scans} scans; the limit is {_MOST_SCANS}")


def _check_pixels(height: int, width: int, most: int) -> None:
    if height * width > most:
        raise Rejected("too_large", f"{height} x {width} pixels; the limit is {most}")


def _takes_too_much() -> Rejected:
    return Rejected("too_large", "decoding it takes more memory than uploads.decode_memory")


@contextmanager
def _memory(more: int) -> Iterator[None]:
    """Lets this process take so many more bytes, where the system can say how many it has."""
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    resource.setrlimit(
        resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
