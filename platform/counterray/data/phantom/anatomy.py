"""The healthy chest: body, lungs and heart of the right area, mediastinum, vessels, bones."""

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
    blob,
    lattice_noise,
    level_for_area,
    make_grid,
    smooth,
    stroke,
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
        """``(u, y)`` of a point: ``depth`` 0 at the inner, 1 at the outer border; ``height`` 0 at the apex."""
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
    girth, slope = draws(int(study["patient_seed"]), "body", 2)
    neck = 0.11 + 0.02 * study["sex"]
    shoulders = smooth((grid.y - (0.02 + 0.04 * slope)) * (1.0 / 0.16))
    trunk = 0.455 + 0.02 * girth + 0.008 * study["sex"]
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
    level = np.empty((grid.size, 1), dtype=np.float32)
    level[:half] = -level_for_area(-inside[:half], round(upper_area))
    level[half:] = -level_for_area(-inside[half:], round(lower_area))
    softness = max(1.5 * grid.pixel, 0.012)
    coverage = smooth(0.5 + (inside - level) * (1.0 / softness))
    return Lung(side, u, medial_column, lateral_column, top, dome, bottom, coverage, inside > level, wall)


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
    floor = 0.45 * np.sqrt(v) + 0.55 * np.sqrt(np.sqrt(v)) * v
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
    potential = np.minimum(np.minimum(ventricle, atrium), root).astype(np.float32)
    level = level_for_area(potential, round(study["area.heart"]))
    softness = max(1.5 * grid.pixel, 0.014)
    return smooth(0.5 + (level - potential) * (1.0 / softness)), potential < level


def draw_soft_tissue(anatomy: Anatomy, study: Scalars) -> Field:
    """Brightness of soft tissue, air and mediastinum without lung vessels, about 0 (air) to 1, ``[S, S]``."""
    grid, middle = anatomy.grid, anatomy.middle
    seed = int(study["patient_seed"])
    thickness, chest, bubble_size, bubble_place, gap = draws(seed, "tissue", 5)
    x, y = grid.x - np.float32(middle), grid.y
    belly = smooth((y - (anatomy.lungs[1].dome - 0.04)) * (1.0 / 0.12))
    muscle = blob(abs(x), y, (0.40, 0.20), (0.17, 0.16))
    tissue = anatomy.body * (0.52 + 0.06 * thickness - 0.5 * x * x + 0.14 * belly + 0.10 * muscle)
    tissue = tissue * (1.0 - (0.66 - 0.05 * thickness) * anatomy.lung_coverage)
    if study["sex"] < 0.5:
        tissue = tissue + anatomy.body * _breasts(x, y, seed)
    tissue = _over(tissue, 0.62 + 0.03 * chest, _mediastinum(x, y, study))
    bubble = blob(x, y, (0.17 + 0.05 * bubble_place, anatomy.lungs[0].dome + 0.115), (0.075, 0.05))
    tissue = tissue - (0.12 + 0.25 * bubble_size) * bubble * (1.0 - anatomy.lungs[0].coverage)
    depth = np.minimum(anatomy.heart, 1.0)
    tissue = _over(tissue, 0.66 + 0.03 * chest, 0.90 * depth)
    airway = smooth(1.0 - abs(x - 0.012 * (gap - 0.5)) * (1.0 / 0.024)) * smooth((0.43 - y) * (1.0 / 0.06))
    return np.asarray(tissue - 0.13 * airway * anatomy.body, dtype=np.float32)


def _over(base: Field, level: float, alpha: Field) -> Field:
    return base + (np.float32(level) - base) * alpha


def _breasts(x: Field, y: Field, seed: int) -> Field:
    size, height, amount = draws(seed, "breast", 3)
    radius = 0.15 + 0.05 * size
    centre_y = 0.60 + 0.06 * height
    distance = np.sqrt((abs(x) - 0.22) ** 2 + (y - centre_y) ** 2 * 0.8)
    edge = smooth((radius - distance) * (1.0 / 0.035))
    fullness = smooth((y - (centre_y - radius)) * (1.0 / (1.4 * radius)))
    return np.asarray((0.04 + 0.10 * amount) * edge * fullness, dtype=np.float32)


def _mediastinum(x: Field, y: Field, study: Scalars) -> Field:
    width, knob = draws(int(study["patient_seed"]), "mediastinum", 2)
    aging = min(max((study["age"] - 20.0) / 70.0, 0.0), 1.0)
    half_width = 0.052 + 0.012 * width + 0.035 * smooth((y - 0.34) * (1.0 / 0.22))
    band = 0.85 * smooth(0.5 + (half_width - abs(x)) * (1.0 / 0.035))
    radius = 0.040 + 0.012 * knob + 0.022 * aging
    arch = 1.25 * blob(x, y, (0.050 + 0.012 * aging, 0.335), (radius * 1.3, radius * 1.5))
    # The descending aorta unfolds with age and shows beside the spine.
    descending = 0.45 * aging * smooth(1.0 - abs(x - 0.062) * (1.0 / 0.030)) * smooth((y - 0.33) * 12.0)
    return np.minimum(np.maximum(np.maximum(band, arch), descending), np.float32(0.92))


def draw_vessels(anatomy: Anatomy, study: Scalars) -> Field:
    """Brightness of lung vessels and fine texture, 0 outside the lungs, ``[S, S]``."""
    grid, seed = anatomy.grid, int(study["patient_seed"])
    field = np.zeros((grid.size, grid.size), dtype=np.float32)
    aging = min(max((study["age"] - 20.0) / 70.0, 0.0), 1.0)
    for lung in anatomy.lungs:
        sign = 1.0 if lung.side == 0 else -1.0
        hilum_u, hilum_y = 0.105, 0.475 - 0.012 * (1 - lung.side)
        hilum = blob(lung.u, grid.y, (hilum_u, hilum_y), (0.065, 0.095))
        tree = 0.20 * hilum
        noise = draws(seed, f"vessels.{lung.side}", 36)
        for branch in range(9):
            a, b, c, d = noise[4 * branch : 4 * branch + 4]
            height = 0.12 + 0.80 * (branch + 0.7 * a) / 9.0
            tip_u, tip_y = lung.place(0.55 + 0.35 * b, height)
            fork = (hilum_u + 0.45 * (tip_u - hilum_u), hilum_y + (0.40 + 0.2 * c) * (tip_y - hilum_y))
            for start, end, width in (
                ((hilum_u, hilum_y), fork, 0.0115),
                (fork, (tip_u, tip_y), 0.0075),
                (fork, (tip_u, tip_y + 0.12 * (d - 0.5)), 0.0055),
            ):
                shown = max(width, 0.8 * grid.pixel)
                _add_stroke(tree, lung, grid, start, end, shown, 0.14 * width / shown)
        field += tree * lung.coverage
        del sign
    texture = lattice_noise(seed, "texture", grid, 22) - 0.5
    return np.asarray(field + (0.035 + 0.035 * aging) * texture * anatomy.lung_coverage, dtype=np.float32)


def _add_stroke(
    target: Field,
    lung: Lung,
    grid: Grid,
    start: tuple[float, float],
    end: tuple[float, float],
    width: float,
    amount: float,
) -> None:
    """Adds a tapering line given in ``(u, y)`` to ``target``, touching only the pixels around it."""
    top, bottom = (f(start[1], end[1]) for f in (min, max))
    near, far = (f(start[0], end[0]) for f in (min, max))
    rows = slice(max(int((top - width) * grid.size), 0), int((bottom + width) * grid.size) + 2)
    inside = np.flatnonzero((lung.u[0] > near - width) & (lung.u[0] < far + width))
    if not len(inside):
        return
    columns = slice(int(inside[0]), int(inside[-1]) + 1)
    line = stroke(lung.u[:, columns], grid.y[rows], start, end, width, taper=0.5)
    target[rows, columns] += np.float32(amount) * line


def draw_bones(anatomy: Anatomy, study: Scalars) -> Field:
    """Brightness that ribs, clavicles and spine add, ``[S, S]``."""
    grid, seed = anatomy.grid, int(study["patient_seed"])
    phase, spacing_noise, slope, density, collar, tilt = draws(seed, "bones", 6)
    aging = min(max((study["age"] - 20.0) / 70.0, 0.0), 1.0)
    strength = (0.80 + 0.4 * density) * (1.0 - 0.45 * aging)
    x, y = grid.x - np.float32(anatomy.middle), grid.y
    u = abs(x)
    cage = smooth((0.44 - u) * (1.0 / 0.05)) * smooth((0.86 - y) * (1.0 / 0.1)) * smooth((y - 0.07) * 14.0)
    spacing = 0.078 + 0.008 * spacing_noise
    back = y - (0.02 * phase) + (0.10 + 0.06 * slope) * u - (0.95 + 0.3 * slope) * u * u
    ribs = 0.115 * _stripes(back / spacing, 0.30) * smooth((u - 0.03) * (1.0 / 0.05))
    front = y - (0.35 + 0.03 * phase) * (1.0 - u) + 0.75 * (0.42 - u) * (0.42 - u) * 1.6 - 0.9 * (0.42 - u)
    fade = smooth((u - 0.15) * (1.0 / 0.10)) * smooth((y - 0.30) * 6.0)
    ribs = ribs + 0.055 * _stripes(front / (1.15 * spacing), 0.36) * fade
    bones = ribs * cage * (0.35 + 0.65 * anatomy.lung_coverage)
    line_y = (
        0.172 + 0.02 * (collar - 0.5) - 0.20 * u + (0.9 + 0.3 * tilt) * (u - 0.20) * (u - 0.20) * (u - 0.02)
    )
    clavicle = (
        smooth(1.0 - abs(y - line_y) * (1.0 / 0.020)) * smooth((u - 0.035) * 40.0) * smooth((0.40 - u) * 12.0)
    )
    bones = bones + 0.17 * clavicle
    disc = 0.6 + 0.4 * _stripes((y + 0.05 * phase) / 0.062, 0.36)
    bones = bones + 0.075 * smooth((0.046 - u) * (1.0 / 0.016)) * disc
    humerus = 0.16 * blob(u, y, (0.475, 0.16), (0.10, 0.11))
    return np.asarray((bones + humerus) * strength * anatomy.body, dtype=np.float32)


def _stripes(t: Field, share: float) -> Field:
    """Periodic bands: 1 inside (``share`` of the period on each side of a whole number), 0 between."""
    offset = abs(t - np.rint(t))
    band = smooth((np.float32(share) - offset) * np.float32(1.0 / 0.12))
    rim = smooth(np.float32(1.0) - abs(offset - np.float32(share - 0.08)) * np.float32(1.0 / 0.08))
    return np.asarray(0.75 * band + 0.25 * rim, dtype=np.float32)
