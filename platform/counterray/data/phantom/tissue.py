"""How a healthy chest shows: soft tissue, breasts, mediastinum, lung vessels, bones."""

from __future__ import annotations

import numpy as np

from counterray.data.phantom.anatomy import Anatomy, Lung, Scalars
from counterray.data.phantom.randomness import draws
from counterray.data.phantom.raster import Field, Grid, blob, lattice_noise, smooth, stroke

_BRANCHES = 6
"""Lung vessels that leave each hilum; each forks once."""


def draw_soft_tissue(anatomy: Anatomy, study: Scalars) -> Field:
    """Brightness of soft tissue, air and mediastinum without lung vessels, about 0 (air) to 1, ``[S, S]``."""
    grid, middle = anatomy.grid, anatomy.middle
    seed = int(study["patient_seed"])
    thickness, chest, bubble_size, bubble_place, gap = draws(seed, "tissue", 5)
    x, y = grid.x - np.float32(middle), grid.y
    belly = smooth((y - (anatomy.lungs[1].dome - 0.16)) * (1.0 / 0.30))
    muscle = blob(abs(x), y, (0.40, 0.22), (0.20, 0.20))
    tissue = anatomy.body * (0.48 + 0.06 * thickness - 0.55 * x * x + 0.17 * belly + 0.10 * muscle)
    tissue = tissue * (1.0 - (0.66 - 0.06 * thickness) * anatomy.lung_coverage)
    if study["sex"] < 0.5:
        tissue = tissue + anatomy.body * _breasts(x, y, seed)
    bubble = blob(x, y, (0.17 + 0.05 * bubble_place, anatomy.lungs[0].dome + 0.11), (0.085, 0.055))
    tissue = tissue - (0.06 + 0.20 * bubble_size) * bubble * (1.0 - anatomy.lungs[0].coverage)
    central = np.maximum(_mediastinum(x, y, study), np.float32(0.93) * anatomy.heart)
    tissue = _over(tissue, 0.63 + 0.04 * chest, central * anatomy.body)
    airway = smooth(1.4 - abs(x - 0.012 * (gap - 0.5)) * (1.0 / 0.020)) * smooth((0.43 - y) * (1.0 / 0.08))
    return np.asarray(tissue - 0.10 * airway * anatomy.body, dtype=np.float32)


def _over(base: Field, level: float, alpha: Field) -> Field:
    return np.asarray(base + (np.float32(level) - base) * alpha)


def _aging(study: Scalars) -> float:
    """0 up to an age of 20 years, 1 from 90 on."""
    return min(max((study["age"] - 20.0) / 70.0, 0.0), 1.0)


def _breasts(x: Field, y: Field, seed: int) -> Field:
    size, height, amount = draws(seed, "breast", 3)
    radius = 0.15 + 0.05 * size
    centre_y = 0.60 + 0.06 * height
    distance = np.sqrt((abs(x) - 0.22) ** 2 + (y - centre_y) ** 2 * 0.8)
    edge = smooth((radius - distance) * (1.0 / 0.035))
    fullness = smooth((y - (centre_y - radius)) * (1.0 / (1.4 * radius)))
    return np.asarray((0.01 + 0.12 * amount * amount) * edge * fullness, dtype=np.float32)


def _mediastinum(x: Field, y: Field, study: Scalars) -> Field:
    width, knob = draws(int(study["patient_seed"]), "mediastinum", 2)
    aging = _aging(study)
    half_width = 0.052 + 0.012 * width + 0.035 * smooth((y - 0.34) * (1.0 / 0.22))
    band = 0.85 * smooth(0.5 + (half_width - abs(x)) * (1.0 / 0.035))
    radius = 0.040 + 0.012 * knob + 0.022 * aging
    arch = 1.25 * blob(x, y, (0.050 + 0.012 * aging, 0.335), (radius * 1.3, radius * 1.5))
    # The descending aorta unfolds with age and shows beside the spine.
    descending = 0.45 * aging * smooth(1.0 - abs(x - 0.062) * (1.0 / 0.030)) * smooth((y - 0.33) * 12.0)
    return np.asarray(np.minimum(np.maximum(np.maximum(band, arch), descending), np.float32(0.92)))


def draw_vessels(anatomy: Anatomy, study: Scalars) -> Field:
    """Brightness of lung vessels and fine texture, 0 outside the lungs, ``[S, S]``."""
    grid, seed = anatomy.grid, int(study["patient_seed"])
    field = np.zeros((grid.size, grid.size), dtype=np.float32)
    for lung in anatomy.lungs:
        hilum = (0.105, 0.472 - 0.012 * (1 - lung.side))
        field += 0.10 * blob(lung.u, grid.y, hilum, (0.075, 0.12))
        noise = iter(draws(seed, f"vessels.{lung.side}", 7 * _BRANCHES))
        for branch in range(_BRANCHES):
            a, b, c, d, e, f, g = (next(noise) for _ in range(7))
            tip = lung.place(0.50 + 0.42 * b, 0.12 + 0.80 * (branch + 0.8 * a) / _BRANCHES)
            root = (hilum[0] + 0.05 * (c - 0.6), hilum[1] + 0.30 * (tip[1] - hilum[1]) * e)
            fork = (
                root[0] + (0.45 + 0.15 * g) * (tip[0] - root[0]),
                root[1] + (0.30 + 0.40 * f) * (tip[1] - root[1]),
            )
            twig = (tip[0] - 0.03 * c, tip[1] + 0.14 * (d - 0.5))
            _add_stroke(field, lung, grid, anatomy.middle, root, fork, 0.0120, 0.075)
            _add_stroke(field, lung, grid, anatomy.middle, fork, tip, 0.0075, 0.070)
            _add_stroke(field, lung, grid, anatomy.middle, fork, twig, 0.0060, 0.060)
    aging = _aging(study)
    texture = lattice_noise(seed, "texture", grid, 22) - 0.5
    field += (0.04 + 0.04 * aging) * texture
    return np.asarray(field * anatomy.lung_coverage * (1.0 - 0.75 * anatomy.heart), dtype=np.float32)


def _add_stroke(
    target: Field,
    lung: Lung,
    grid: Grid,
    middle: float,
    start: tuple[float, float],
    end: tuple[float, float],
    width: float,
    amount: float,
) -> None:
    """Adds a line given in ``(u, y)`` to ``target``, touching only the pixels around it.

    A line thinner than a pixel is drawn a pixel wide and fainter, so that it does not break into dots.
    """
    shown = max(width, 0.8 * grid.pixel)
    sign = 1.0 if lung.side == 0 else -1.0
    ends = sorted(middle + sign * u for u in (start[0], end[0]))
    rows = _window(min(start[1], end[1]) - shown, max(start[1], end[1]) + shown, grid.size)
    columns = _window(ends[0] - shown, ends[1] + shown, grid.size)
    line = stroke(lung.u[:, columns], grid.y[rows], start, end, shown)
    line *= np.float32(amount * width / shown)
    target[rows, columns] += line


def _window(low: float, high: float, size: int) -> slice:
    """Pixels whose centres lie between two coordinates."""
    return slice(max(int(low * size), 0), max(int(high * size) + 1, 0))


def draw_bones(anatomy: Anatomy, study: Scalars) -> Field:
    """Brightness that ribs, clavicles and spine add, ``[S, S]``."""
    grid, seed = anatomy.grid, int(study["patient_seed"])
    phase, spacing_noise, slope, density, collar, tilt = draws(seed, "bones", 6)
    aging = _aging(study)
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
        smooth(1.0 - abs(y - line_y) * (1.0 / 0.025)) * smooth((u - 0.035) * 40.0) * smooth((0.40 - u) * 12.0)
    )
    bones = bones + 0.15 * clavicle
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
