"""The findings as they show on the film, each with the mask of where it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterray.data.phantom.anatomy import Anatomy, Lung, Scalars
from counterray.data.phantom.randomness import draws
from counterray.data.phantom.raster import Field, Mask, blob, lattice_noise, smooth

BOTH = 2
"""Code of ``side.<finding>`` for both lungs; 0 and 1 are the lungs' own ``side``."""

_ZONE_HEIGHTS = (0.24, 0.48, 0.70)
_SEEN = 0.12


@dataclass
class Film:
    """What lesions change.

    Attributes:
        tissue: ``[S, S]`` brightness of soft tissue.
        vessels: ``[S, S]`` brightness of lung vessels.
        lesion: ``[S, S]`` union of the lesions drawn so far.
    """

    tissue: Field
    vessels: Field
    lesion: Mask

    def cover(self, level: float, alpha: Field, lung: Lung) -> None:
        """Lets tissue of brightness ``level`` hide what is below it, and marks where that shows."""
        # Past the soft border's middle the lesion hides the lung altogether, or a dark seam would show.
        alpha = alpha * np.minimum(np.float32(1.8) * lung.coverage, np.float32(1.0))
        self.tissue = self.tissue + (np.float32(level) - self.tissue) * alpha
        self.vessels = self.vessels * (np.float32(1.0) - alpha)
        self.lesion = self.lesion | ((alpha > _SEEN) & lung.mask)


def draw_lesions(film: Film, anatomy: Anatomy, study: Scalars) -> None:
    """Draws every finding whose severity is above 0. Cardiomegaly is the heart's area, so it is not here."""
    for finding, draw in _DRAW.items():
        severity = study[f"severity.{finding}"]
        if severity <= 0:
            continue
        side = study.get(f"side.{finding}", float(BOTH))
        for lung in anatomy.lungs:
            if side in (lung.side, BOTH):
                draw(film, anatomy, lung, study, severity)


def _effusion(film: Film, anatomy: Anatomy, lung: Lung, study: Scalars, severity: float) -> None:
    """Fluid in the costophrenic angle with a meniscus that climbs the chest wall."""
    rise, curve = draws(int(study["noise_seed"]), f"pleural_effusion.{lung.side}", 2)
    y = anatomy.grid.y
    across = np.minimum(np.maximum((lung.lateral - lung.u) * (1.0 / 0.30), 0.0), 1.0)
    height = 0.03 + 0.29 * severity + 0.03 * rise
    surface = lung.bottom - height + (0.05 + 0.09 * severity) * (1.4 + 0.6 * curve) * across * (1.55 - across)
    film.cover(0.60, 0.95 * smooth((y - surface) * (1.0 / 0.035)), lung)


def _consolidation(film: Film, anatomy: Anatomy, lung: Lung, study: Scalars, severity: float) -> None:
    """A patch of confluent, cloudy opacities."""
    noise = draws(int(study["noise_seed"]), f"consolidation.{lung.side}", 17)
    zone = int(study["zone.consolidation"])
    centre_u, centre_y = lung.place(0.38 + 0.32 * noise[0], _ZONE_HEIGHTS[zone] + 0.06 * (noise[1] - 0.5))
    patch = np.zeros_like(film.tissue)
    for spot in range(5):
        a, b, c = noise[2 + 3 * spot : 5 + 3 * spot]
        radius = (0.055 + 0.035 * c) * (0.75 + 0.6 * severity)
        place = (centre_u + 0.11 * (a - 0.5), centre_y + 0.12 * (b - 0.5))
        patch += blob(lung.u, anatomy.grid.y, place, (radius, 0.9 * radius))
    cloud = lattice_noise(int(study["noise_seed"]), f"cloud.{lung.side}", anatomy.grid, 18)
    alpha = np.minimum(patch * (0.55 + 0.9 * cloud), 1.0) * (0.38 + 0.47 * severity)
    film.cover(0.58, alpha, lung)


def _atelectasis(film: Film, anatomy: Anatomy, lung: Lung, study: Scalars, severity: float) -> None:
    """Plate-like bands with a haze that narrows towards the hilum."""
    noise = draws(int(study["noise_seed"]), f"atelectasis.{lung.side}", 6)
    zone = int(study["zone.atelectasis"])
    u, y = lung.u, anatomy.grid.y
    centre_u, centre_y = lung.place(
        0.50 + 0.1 * (noise[0] - 0.5), _ZONE_HEIGHTS[zone] + 0.08 * (noise[1] - 0.5)
    )
    slope = 0.7 * (noise[2] - 0.35)
    thickness = max(0.009 + 0.014 * severity, 0.9 * anatomy.grid.pixel)
    length = 0.085 + 0.04 * noise[3] + 0.02 * severity
    ends = smooth((length - abs(u - centre_u)) * (1.0 / 0.05))
    axis = y - centre_y - slope * (u - centre_u)
    band = smooth(1.0 - abs(axis) * (1.0 / thickness))
    second = smooth(1.0 - abs(axis - 0.045 - 0.02 * noise[4]) * (1.0 / (0.7 * thickness)))
    haze = blob(u, y - slope * (u - centre_u), (centre_u, centre_y + 0.02), (0.15, 0.085))
    alpha = np.maximum(
        np.maximum(band, (0.4 + 0.5 * noise[5]) * second) * ends * (0.45 + 0.4 * severity),
        (0.10 + 0.25 * severity) * haze,
    )
    film.cover(0.58, alpha, lung)


def _edema(film: Film, anatomy: Anatomy, lung: Lung, study: Scalars, severity: float) -> None:
    """Haze around the hilum in the shape of a bat's wing, with blurred vessels."""
    noise = lattice_noise(int(study["noise_seed"]), f"edema.{lung.side}", anatomy.grid, 26)
    wing = blob(lung.u, anatomy.grid.y, (0.13, 0.52), (0.24, 0.30))
    film.vessels = film.vessels * (1.0 + 0.5 * severity * wing * lung.coverage)
    alpha = np.minimum(1.25 * wing, 1.0) * (0.10 + 0.48 * severity) * (0.55 + 0.8 * noise)
    film.cover(0.56, np.minimum(alpha, np.float32(1.0)), lung)


def _pneumothorax(film: Film, anatomy: Anatomy, lung: Lung, study: Scalars, severity: float) -> None:
    """Air outside the lung: a dark rim without vessels, widest at the apex, and the pleural line."""
    width_noise = draws(int(study["noise_seed"]), f"pneumothorax.{lung.side}", 1)[0]
    descent = np.minimum(np.maximum((anatomy.grid.y - lung.top) * (1.0 / (lung.bottom - lung.top)), 0.0), 1.0)
    width = (0.035 + 0.105 * severity + 0.01 * width_noise) * (1.0 - 0.75 * descent)
    softness = max(0.008, anatomy.grid.pixel)
    rim = smooth(0.5 + (width - lung.wall) * (1.0 / softness)) * lung.coverage
    line_width = max(0.007, 0.9 * anatomy.grid.pixel)
    line = smooth(1.0 - abs(lung.wall - width) * (1.0 / line_width)) * lung.coverage
    film.vessels = film.vessels * (1.0 - rim)
    free = 1.0 - anatomy.heart
    collapsed = (lung.coverage - rim) * (0.03 + 0.05 * severity) * free
    film.tissue = film.tissue * (1.0 - 0.38 * rim * free) + collapsed + 0.16 * line
    film.lesion = film.lesion | ((rim > 0.5) & lung.mask)


_DRAW = {
    "edema": _edema,
    "atelectasis": _atelectasis,
    "consolidation": _consolidation,
    "pneumothorax": _pneumothorax,
    "pleural_effusion": _effusion,
}
"""Finding to its drawing, in the order in which they cover one another."""
