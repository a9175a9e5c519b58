"""Drawing on a square grid with correctly rounded arithmetic only.

Images are made of +, -, *, /, square root, comparison and rounding, which IEEE 754 fixes to the last bit. So
a study has the same pixels on every machine and in every batch: no exponential, sine or matrix product here.
Coordinates are fractions of the edge: x from left to right, y from top to bottom, at pixel centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterray.data.phantom.randomness import hashes, uniforms

Field = NDArray[np.floating[Any]]
"""A float32 map over the image ``[S, S]``, a row ``[1, S]`` or a column ``[S, 1]``."""

Mask = NDArray[np.bool_]
"""A binary map ``[S, S]``."""


_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)


@dataclass(frozen=True)
class Grid:
    """Pixel centres of a square image.

    Attributes:
        size: Edge [px].
        x: ``[1, S]``.
        y: ``[S, 1]``.
    """

    size: int
    x: Field
    y: Field

    @property
    def pixel(self) -> float:
        """Edge of a pixel as a fraction of the image."""
        return 1.0 / self.size


@lru_cache(maxsize=8)
def make_grid(size: int) -> Grid:
    """The grid of an image with edge ``size`` [px]."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return Grid(size, centres[None, :], centres[:, None])


def smooth(t: Field) -> Field:
    """Smooth step: 0 for t <= 0, 1 for t >= 1, with flat ends."""
    t = np.minimum(np.maximum(t, _ZERO), _ONE)
    rest = np.float32(3.0) - np.float32(2.0) * t
    rest *= t
    rest *= t
    return rest


def blob(x: Field, y: Field, centre: tuple[float, float], radii: tuple[float, float]) -> Field:
    """A soft spot: 1 at its centre, 0 beyond the ellipse with ``radii``."""
    across, down = (x - centre[0]) * (1.0 / radii[0]), (y - centre[1]) * (1.0 / radii[1])
    inside = np.maximum(np.float32(1.0) - across * across - down * down, np.float32(0.0))
    return inside * inside


def stroke(x: Field, y: Field, start: tuple[float, float], end: tuple[float, float], width: float) -> Field:
    """A line with a soft profile: 1 on its axis, 0 at ``width`` from it.

    Args:
        x: ``[1, S]``.
        y: ``[S, 1]``.
        start: x and y of the first end.
        end: x and y of the second end.
        width: Half-width.
    """
    dx, dy = end[0] - start[0], end[1] - start[1]
    scale = 1.0 / (dx * dx + dy * dy)
    px, py = x - start[0], y - start[1]
    along = px * (dx * scale) + py * (dy * scale)
    np.minimum(np.maximum(along, _ZERO, out=along), _ONE, out=along)
    across, down = px - along * dx, py - along * dy
    across *= across
    down *= down
    across += down
    across *= np.float32(-1.0 / (width * width))
    across += _ONE
    return np.maximum(across, _ZERO, out=across)


def lattice_noise(seed: int, stream: str, grid: Grid, cells: int) -> Field:
    """Smooth noise in [0, 1]: random values on a lattice of ``cells`` by ``cells``, interpolated."""
    values = uniforms(np.array([seed]), stream, (cells + 1) ** 2)[0]
    lattice = values.reshape(cells + 1, cells + 1).astype(np.float32)
    position = grid.x[0] * cells
    low = np.minimum(position.astype(np.int64), cells - 1)
    weight = smooth(position - low.astype(np.float32))
    rows = lattice[low] + (lattice[low + 1] - lattice[low]) * weight[:, None]
    return np.asarray(rows[:, low] + (rows[:, low + 1] - rows[:, low]) * weight[None, :])


def white_noise(seed: int, stream: str, grid: Grid) -> Field:
    """Bell-shaped noise, independent in every pixel: mean 0, standard deviation 1.

    Four 16-bit parts of one hash are summed, so that a pixel costs one hash.
    """
    bits = hashes(np.array([seed]), stream, grid.size**2)[0]
    part = np.uint64(0xFFFF)
    total = (bits & part) + ((bits >> np.uint64(16)) & part)
    total += ((bits >> np.uint64(32)) & part) + (bits >> np.uint64(48))
    field = (total.astype(np.float32) - np.float32(131070.0)) * np.float32(1.0 / 37837.2)
    return np.asarray(field.reshape(grid.size, grid.size))


def blur(image: Field, variance: float) -> Field:
    """Blurs with a kernel of the given variance [px^2] in each direction; borders are repeated."""
    while variance > 1e-3:
        reach = max(1, int((0.5 * variance) ** 0.5))
        weight = min(0.25, variance / (2.0 * reach * reach))
        for axis in (0, 1):
            padding = [(reach, reach) if axis == a else (0, 0) for a in (0, 1)]
            wide = np.pad(image, padding, mode="edge")
            low, high = (
                (wide[: -2 * reach], wide[2 * reach :])
                if axis == 0
                else (wide[:, : -2 * reach], wide[:, 2 * reach :])
            )
            image = image * (1.0 - 2.0 * weight) + (low + high) * weight
        variance -= 2.0 * weight * reach * reach
    return image


def cut_region(inside: Field, areas: Sequence[tuple[slice, float]], *, softness: float) -> tuple[Field, Mask]:
    """Cuts a region of known area out of a potential: once soft, to draw it, and once as a mask.

    The mask's level is found by ranking, so its pixel count is right but for rounding. The soft border takes
    one secant step more, because a count jumps from pixel to pixel and the drawn area should not.

    Args:
        inside: ``[S, S]`` potential that grows inwards, in fractions of the image.
        areas: Rows, and the area of the region's part in them [px^2]; together they are all rows.
        softness: Width of the soft border, as a fraction of the image.

    Returns:
        Coverage in [0, 1] and mask, ``[S, S]`` each.
    """
    size = len(inside)
    level = np.empty((size, 1), dtype=np.float32)
    for rows, area in areas:
        level[rows] = _level_of_rank(inside[rows], round(area))
    mask = inside > level
    step = np.float32(0.3 / size)
    here, there = (_soft_cut(inside, level + shift, softness) for shift in (_ZERO, step))
    for rows, area in areas:
        more, less = _exact_total(here[rows]), _exact_total(there[rows])
        level[rows] += float(step) * (more - area) / (more - less)
    return _soft_cut(inside, level, softness), mask


def _soft_cut(inside: Field, level: Field, softness: float) -> Field:
    return smooth(0.5 + (inside - level) * (1.0 / softness))


def _exact_total(coverage: Field) -> float:
    """Sum of a map, rounded to 1 / 4096 a pixel: adding integers is exact in any order."""
    return float((coverage * np.float32(4096.0)).astype(np.int64).sum()) / 4096.0


def _level_of_rank(inside: Field, pixels: int) -> float:
    """The level above which ``pixels`` values of ``inside`` lie (ties apart)."""
    rank = inside.size - min(max(pixels, 1), inside.size - 1)
    ordered = np.partition(inside, (rank - 1, rank), axis=None)
    return float((ordered[rank - 1] + ordered[rank]) * np.float32(0.5))
