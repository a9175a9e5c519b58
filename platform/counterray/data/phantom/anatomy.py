"""Where things are in a healthy chest: the body's outline, and lungs and heart of exactly the wanted area."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterray.data.phantom.randomness import draws
from counterray.data.phantom.raster import (
    Field,
    Grid,
    Mask,
    cut_region,
    make_grid,
    smooth,
)

SPLIT = 0.5
"""Height that parts the upper from the lower half of a lung, as a fraction of the image."""

Scalars = Mapping[str, float]
"""Variable of one study to its value."""


@dataclass(frozen=True)
class Lung:
    """One lung; ``u`` runs from the midline outwards.

    Attributes:
        side: 0 for the patient's left (on the right of the image), 1 for the right.
        u: ``[1, S]`` distance from the midline on this side (negative on the other).
        medial: ``[S, 1]`` inner border.
        lateral: ``[S, 1]`` outer border.
        top: Height of the apex.
        dome: Height of the diaphragm's top.
        bottom: Height of the costophrenic angle.
        coverage: ``[S, S]`` share of lung in [0, 1], with a soft border.
        mask: ``[S, S]``; its number of pixels in each half is that half's area, rounded.
        wall: ``[S, S]`` distance from the outer border and apex, positive inside.
    """

    side: int
    u: Field
    medial: Field
    lateral: Field
    top: float
    dome: float
    bottom: float
    coverage: Field
    mask: Mask
    wall: Field

    def place(self, depth: float, height: float) -> tuple[float, float]:
        """``(u, y)`` of a point: ``depth`` 0 at the inner border, ``height`` 0 at the apex, 1 opposite."""
        y = self.top + height * (self.bottom - self.top)
        row = min(int(y * len(self.medial)), len(self.medial) - 1)
        inner, outer = float(self.medial[row, 0]), float(self.lateral[row, 0])
        return inner + depth * (outer - inner), y


@dataclass(frozen=True)
class Anatomy:
    """What lesions and bones are drawn on.

    Attributes:
        grid: Pixel centres.
        middle: x of the midline.
        body: ``[S, S]`` share of body in [0, 1].
        lungs: The patient's left and right lung.
        heart: ``[S, S]`` coverage of the heart.
        heart_mask: ``[S, S]``; its number of pixels is the heart's area, rounded.
    """

    grid: Grid
    middle: float
    body: Field
    lungs: tuple[Lung, Lung]
    heart: Field
    heart_mask: Mask

    @property
    def lung_coverage(self) -> Field:
        """Coverage of both lungs."""
        return self.lungs[0].coverage + self.lungs[1].coverage


def build_anatomy(size: int, study: Scalars) -> Anatomy:
    """Lays out body, lungs and heart.

    Args:
        size: Edge of the image [px].
        study: The seeds, sex, and the five areas [px^2].
    """
    grid = make_grid(size)
    seed = int(study["patient_seed"])
    shift, *_ = draws(seed, "posture", 4)
    middle = 0.5 + 0.03 * (shift - 0.5)
    lungs = (_lung(grid, study, 0, middle), _lung(grid, study, 1, middle))
    heart, heart_mask = _heart(grid, study, middle)
    return Anatomy(grid, middle, _body(grid, study, middle), lungs, heart, heart_mask)


def _body(grid: Grid, study: Scalars, middle: float) -> Field:
    girth, slope, collar = draws(int(study["patient_seed"]), "body", 3)
    neck = 0.12 + 0.03 * collar + 0.006 * study["sex"]
    shoulders = smooth((grid.y + 0.05 - 0.03 * slope) * (1.0 / 0.21))
    trunk = 0.455 + 0.02 * girth + 0.006 * study["sex"]
    half_width = neck + (0.56 - neck) * shoulders - (0.56 - trunk) * smooth((grid.y - 0.22) * (1.0 / 0.2))
    return smooth(0.5 + (half_width - abs(grid.x - middle)) * (1.0 / 0.03))


def _lung(grid: Grid, study: Scalars, side: int, middle: float) -> Lung:
    name = ("left_lung", "right_lung")[side]
    pixels = grid.size**2
    upper_area, lower_area = study[f"area.{name}_upper"], study[f"area.{name}_lower"]
    shape = draws(int(study["patient_seed"]), name, 6)
    breath = draws(int(study["noise_seed"]), "breath", 1)[0]
    rise = 0.365 * (0.4 + 0.6 * (upper_area / pixels / 0.066) ** 0.5) + 0.02 * (shape[0] - 0.5)
    drop = 0.345 * (0.4 + 0.6 * (lower_area / pixels / 0.0625) ** 0.5) + 0.02 * (shape[1] + breath - 1.0)
    top, bottom = SPLIT - rise, SPLIT + drop
    dome = bottom - (0.115 + 0.02 * shape[2] + 0.012 * side)
    y = grid.y.astype(np.float64)[:, 0]
    inner, outer, floor = _template(y, top, dome, bottom, shape, side)
    scale = _fit_scale(y, (outer - inner) * (1.0 - floor), upper_area / pixels, lower_area / pixels)
    lateral = inner + scale * (outer - inner)
    medial = inner + scale * (outer - inner) * floor
    sign = 1.0 if side == 0 else -1.0
    u = ((grid.x - np.float32(middle)) * np.float32(sign)).astype(np.float32)
    medial_column, lateral_column = (edge.astype(np.float32)[:, None] for edge in (medial, lateral))
    wall = np.minimum((lateral_column - u) / _steepness(lateral, grid), grid.y - top)
    inside = np.minimum(wall, (u - medial_column) / _steepness(medial, grid))
    inside = np.minimum(inside, bottom - grid.y).astype(np.float32)
    half = int(np.count_nonzero(y < SPLIT))
    coverage, mask = cut_region(
        inside,
        [(slice(0, half), upper_area), (slice(half, grid.size), lower_area)],
        softness=max(1.5 * grid.pixel, 0.012),
    )
    return Lung(side, u, medial_column, lateral_column, top, dome, bottom, coverage, mask, wall)


def _template(
    y: NDArray[np.float64], top: float, dome: float, bottom: float, shape: list[float], side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Inner and outer border before scaling, and the share of the width that the diaphragm hides."""
    above = np.clip((y - top) / (SPLIT - top), 0.0, 1.0)
    below = np.clip((y - SPLIT) / (bottom - SPLIT), 0.0, 1.0)
    apex = np.sqrt(1.0 - (1.0 - np.minimum(above / 0.3, 1.0)) ** 2)
    widening = 0.135 + 0.02 * (shape[3] - 0.5)
    inner = 0.125 - 0.062 * apex + 0.028 * above + (0.012 if side == 0 else 0.002) * below
    outer = 0.125 + 0.075 * apex + widening * (1.0 - (1.0 - above) ** 2)
    outer = outer + 0.05 * below - 0.022 * below**4
    v = np.clip((y - dome) / (bottom - dome), 0.0, 1.0)
    floor = 0.75 * np.sqrt(v) + 0.25 * v
    return inner, outer, floor


def _fit_scale(
    y: NDArray[np.float64], width: NDArray[np.float64], upper: float, lower: float
) -> NDArray[np.float64]:
    """Width factor of each row so that the halves have the areas ``upper`` and ``lower``.

    The factor goes smoothly from one value above to another below; both follow from two linear equations.
    """
    blend = np.clip((y - SPLIT + 0.1) / 0.2, 0.0, 1.0)
    blend = blend * blend * (3.0 - 2.0 * blend)
    step = 1.0 / len(y)
    is_upper = y < SPLIT

    def area(weight: NDArray[np.float64], rows: NDArray[np.bool_]) -> float:
        return math.fsum((width * weight)[rows].tolist()) * step

    a, b = area(1.0 - blend, is_upper), area(blend, is_upper)
    c, d = area(1.0 - blend, ~is_upper), area(blend, ~is_upper)
    determinant = a * d - b * c
    top_scale = (upper * d - b * lower) / determinant
    base_scale = (a * lower - c * upper) / determinant
    return top_scale + (base_scale - top_scale) * blend


def _steepness(edge: NDArray[np.float64], grid: Grid) -> Field:
    """Length of a border per row: turns a horizontal into a perpendicular distance, ``[S, 1]``."""
    slope = np.clip(np.gradient(edge, grid.pixel), -4.0, 4.0)
    return np.sqrt(1.0 + slope * slope).astype(np.float32)[:, None]


def _heart(grid: Grid, study: Scalars, middle: float) -> tuple[Field, Mask]:
    shape = draws(int(study["patient_seed"]), "heart", 4)
    x, y = grid.x - np.float32(middle), grid.y
    size = (study["area.heart"] / grid.size**2) ** 0.5
    centre_y = 0.655 + 0.02 * (shape[0] - 0.5)
    tilt = 0.42 + 0.25 * (shape[1] - 0.5)
    # A tilted ventricle, a right atrium and the great vessels' root; their union is cut at the level that
    # has the wanted area.
    px, py = x - (0.05 + 0.12 * size), y - centre_y
    along, across = px + tilt * py, py - tilt * px
    ventricle = np.sqrt(along * along * 0.62 + across * across * 1.25)
    ax, ay = x + 0.022, y - (centre_y - 0.02)
    atrium = np.sqrt(ax * ax * 1.9 + ay * ay * 0.95) + 0.012
    bx, by = x - 0.015, y - (centre_y - 0.09)
    root = np.sqrt(bx * bx * 2.6 + by * by * 0.9) + 0.035
    inside = -np.minimum(np.minimum(ventricle, atrium), root)
    area = [(slice(0, grid.size), study["area.heart"])]
    return cut_region(inside, area, softness=max(1.5 * grid.pixel, 0.014))
