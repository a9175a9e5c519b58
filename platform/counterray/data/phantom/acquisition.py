"""From brightness to grey levels: exposure, the scanner's response, the group's faint signature, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterray.data.phantom.anatomy import Scalars
from counterray.data.phantom.randomness import bell, draws
from counterray.data.phantom.raster import Field, Grid, blur, white_noise


@dataclass(frozen=True)
class Scanner:
    """How a device turns brightness into grey levels.

    Attributes:
        bend: Tone curve ``t / (t + bend * (1 - t))``; below 1 brightens, as a gamma below 1 does.
        noise: Standard deviation of the pixel noise [of the range 0 to 1].
        blur: Standard deviation of the blur, as a fraction of the image.
        vignette: Share of brightness lost in the corners.
    """

    bend: float
    noise: float
    blur: float
    vignette: float


SCANNERS = (
    Scanner(bend=0.72, noise=0.020, blur=0.0085, vignette=0.22),
    Scanner(bend=1.18, noise=0.014, blur=0.0055, vignette=0.08),
    Scanner(bend=1.00, noise=0.008, blur=0.0035, vignette=0.02),
    Scanner(bend=1.42, noise=0.026, blur=0.0070, vignette=0.16),
)
"""By code of the variable ``scanner``: analog, compact, digital, mobile."""

SIGNATURE = 0.010
"""Largest brightness that a group adds to any pixel [of the range 0 to 1]: about 2.5 grey levels."""

TINT_SPREAD = 0.8
"""Standard deviation of a study's own tint, as a multiple of the group's."""


def acquire(brightness: Field, grid: Grid, study: Scalars) -> NDArray[np.uint8]:
    """Grey levels of a film, ``[S, S]``.

    Args:
        brightness: ``[S, S]``, about 0 to 1.
        grid: Pixel centres.
        study: The noise seed, scanner and group.
    """
    scanner = SCANNERS[int(study["scanner"])]
    exposure, contrast = draws(int(study["noise_seed"]), "exposure", 2)
    x, y = grid.x - np.float32(0.5), grid.y - np.float32(0.5)
    film = 0.5 + (brightness - 0.47 + 0.07 * (exposure - 0.5)) * (1.14 + 0.18 * (contrast - 0.5))
    film = film * (1.0 - 2.0 * scanner.vignette * (x * x + y * y))
    film = np.minimum(np.maximum(film, np.float32(0.0)), np.float32(1.0))
    film = film / (film + scanner.bend * (1.0 - film))
    film = blur(film, (scanner.blur * grid.size) ** 2)
    film = film + _signature(x, y, study)
    film = film + scanner.noise * white_noise(int(study["noise_seed"]), "pixels", grid)
    grey = np.rint(np.minimum(np.maximum(film, np.float32(0.0)), np.float32(1.0)) * np.float32(255.0))
    return np.asarray(grey.astype(np.uint8))


def _signature(x: Field, y: Field, study: Scalars) -> Field:
    """A tint from side to side and from top to bottom.

    Group b is tinted along x and c along y, each study by an amount of its own besides: the group can be
    guessed from many pixels, but not read off.
    """
    seed, group = np.array([int(study["noise_seed"])]), int(study["group"])
    across, down = (float(bell(seed, f"tint.{axis}")[0]) for axis in ("x", "y"))
    tint = (across + (group == 1) / TINT_SPREAD) * x + (down + (group == 2) / TINT_SPREAD) * y
    return np.asarray(2.0 * SIGNATURE * TINT_SPREAD * tint, dtype=np.float32)
