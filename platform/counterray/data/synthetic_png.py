"""Synthetic images as PNG files that say what they are."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from counterray import __version__

DESCRIPTION = "synthetic counterfactual, not an examination"
"""What every file says of itself."""


def to_grey(image: Tensor, bits: int) -> NDArray[np.unsignedinteger]:
    """Grey values ``[H, W]`` of ``bits`` bits of an image ``[1, H, W]`` in [-1, 1]; outside is clipped."""
    unit = (image[0].double().numpy().clip(-1, 1) + 1) / 2
    grey: NDArray[np.unsignedinteger] = np.rint(unit * (2**bits - 1)).astype(
        np.uint8 if bits == 8 else np.uint16
    )
    return grey


def encode_png(
    grey: NDArray[np.unsignedinteger], *, source: str, more: Mapping[str, str] | None = None
) -> bytes:
    """A PNG file of 8 bits with the text chunks ``Description``, ``Source`` and ``Software``.

    Args:
        grey: ``[H, W]`` of 8 bits.
        source: What made it, such as ``bundle <checksum>``.
        more: Further text chunks by keyword.
    """
    text = PngInfo()
    text.add_text("Description", DESCRIPTION)
    text.add_text("Source", source)
    text.add_text("Software", f"counterray {__version__}")
    for keyword, said in (more or {}).items():
        text.add_text(keyword, said)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
