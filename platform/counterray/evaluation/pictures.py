"""Tensors as pictures for a report: radiographs in grey, direct effects in colour, as data URIs."""

from __future__ import annotations

import base64
import io
from typing import Literal

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

PICTURE_SIZE = 192
"""Edge of a picture [px]: small enough for six in a row, large enough to see an effusion."""

EFFECT_RANGE = 0.6
"""Grey value difference, of the 2 between black and white, at the ends of the effect map's colours."""

_EFFECT_COLOURS = LinearSegmentedColormap.from_list(
    "effect", ["#c4ecff", "#4aa3e8", "#1b4f86", "#0b0d10", "#8a3d0c", "#ee8a33", "#ffe3b8"]
)
# Blue against orange, which colour-blind readers tell apart; lightness grows evenly with the effect; dark
# where nothing changed, so that a map sits beside radiographs on a light page as on a dark one.

Resampling = Literal["nearest", "lanczos"]
"""``nearest`` shows the pixels as they are; ``lanczos`` as a viewer on a reading screen would."""


def grey_picture(image: Tensor, *, size: int = PICTURE_SIZE, resampling: Resampling = "lanczos") -> str:
    """A radiograph as a PNG data URI.

    Args:
        image: ``[1, H, W]`` or ``[H, W]`` in [-1, 1]; values outside are clipped.
        size: Edge of the longer side [px].
        resampling: How it is scaled.

    Raises:
        ValueError: If the image is not one grey image, or not finite.
    """
    grey = (_plane(image) + 1) / 2
    return _data_uri(Image.fromarray(_bytes(grey)), size, resampling)


def effect_picture(
    counterfactual: Tensor,
    reference: Tensor,
    *,
    size: int = PICTURE_SIZE,
    limit: float = EFFECT_RANGE,
    resampling: Resampling = "lanczos",
) -> str:
    """The direct effect, ``counterfactual - reference``, coloured on a fixed scale, as a PNG data URI.

    Orange is brighter than before, blue darker, black unchanged. The scale does not depend on the image, so
    that maps can be compared with each other and with the legend.

    Args:
        counterfactual: ``[1, H, W]`` or ``[H, W]`` in [-1, 1].
        reference: The image before, as ``counterfactual``.
        size: Edge of the longer side [px].
        limit: Difference at the ends of the scale; larger ones are clipped.
        resampling: How it is scaled.
    """
    difference = _plane(counterfactual) - _plane(reference)
    colours = _EFFECT_COLOURS((difference / limit + 1) / 2)[..., :3]
    return _data_uri(Image.fromarray(_bytes(colours)), size, resampling)


def effect_gradient(stops: int = 9) -> str:
    """The effect map's scale as a CSS gradient, from darker to brighter."""
    colours = _bytes(_EFFECT_COLOURS(np.linspace(0, 1, stops))[:, :3])
    return f"linear-gradient(to right, {', '.join('#' + colour.tobytes().hex() for colour in colours)})"


def _plane(image: Tensor) -> NDArray[np.float64]:
    plane = image[0] if image.ndim == 3 and len(image) == 1 else image
    values = np.asarray(plane.detach().cpu().double().numpy())
    if values.ndim != 2:
        raise ValueError(
            f"A picture is made of one grey image [1, H, W]; this has shape {tuple(image.shape)}."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"An image with {int((~np.isfinite(values)).sum())} values that are not finite.")
    return values


def _bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    scaled: NDArray[np.uint8] = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return scaled


def _data_uri(picture: Image.Image, size: int, resampling: Resampling) -> str:
    scale = size / max(picture.size)
    edges = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    how = Image.Resampling.LANCZOS if resampling == "lanczos" else Image.Resampling.NEAREST
    stream = io.BytesIO()
    picture.resize(edges, how).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
