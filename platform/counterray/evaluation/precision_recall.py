"""Precision, recall, density and coverage: are the images real-looking, and are they all kinds?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from counterray.evaluation.intervals import Floats, summarise
from counterray.evaluation.metric import Metric
from counterray.evaluation.two_sample import TwoSamples, both_checked, pairwise_distances

NEIGHBOURS = 5
"""k of the nearest-neighbour balls: Naeem et al., 2020, section 4; Kynkäänniemi et al. take 3."""


@dataclass(frozen=True)
class ManifoldScores:
    """One value per image; the means are precision, recall, density and coverage.

    Attributes:
        precise: ``[n]`` bool, generated images inside a real image's ball.
        density: ``[n]``, number of real images' balls around a generated image, over k.
        recalled: ``[m]`` bool, real images inside a generated image's ball.
        covered: ``[m]`` bool, real images whose ball holds a generated image.
    """

    precise: NDArray[np.bool_]
    density: Floats
    recalled: NDArray[np.bool_]
    covered: NDArray[np.bool_]


def manifold_scores(generated: Tensor, real: Tensor, *, neighbours: int = NEIGHBOURS) -> ManifoldScores:
    """Which images lie within balls around images of the other kind.

    The ball of an image reaches to its k-th nearest neighbour of its own kind, itself not counted.

    Args:
        generated: Features ``[n, D]``, n > k.
        real: Features ``[m, D]``, m > k.
        neighbours: k.

    Raises:
        ValueError: If the features are no finite matrices of the same width, k is below 1, or a sample has
            no more than k images.

    Reference: precision and recall: Kynkäänniemi et al., 2019, https://arxiv.org/abs/1904.06991, equations
        1 and 2; density and coverage: Naeem et al., 2020, https://arxiv.org/abs/2002.09797, equations 4
        and 6.
    """
    if neighbours < 1:
        raise ValueError(f"Precision and recall: neighbours ({neighbours}) must be 1 or more.")
    ours, theirs = both_checked(
        generated, real, f"Precision and recall with k = {neighbours}", minimum=neighbours + 1
    )
    across = pairwise_distances(ours, theirs)
    real_radius, radius = _radii(theirs, neighbours), _radii(ours, neighbours)
    inside = across <= real_radius
    return ManifoldScores(
        precise=np.asarray(inside.any(axis=1)),
        density=inside.sum(axis=1) / neighbours,
        recalled=np.asarray((across <= radius[:, None]).any(axis=0)),
        covered=np.asarray(inside.any(axis=0)),
    )


def precision_recall_metrics(
    samples: TwoSamples, *, neighbours: int = NEIGHBOURS, seed: int = 0
) -> list[Metric]:
    """Precision, recall, density and coverage, with intervals over patients.

    The interval of each resamples the images that it averages over and keeps the balls as they are: a
    resample's repeated images would shrink them.

    Args:
        samples: Generated and real images, n, m > k.
        neighbours: k.
        seed: Of the bootstrap.

    Raises:
        ValueError: As `manifold_scores`.
    """
    scores = manifold_scores(samples.generated, samples.real, neighbours=neighbours)
    sizes = f"k = {neighbours}, {len(samples.generated)} generated and {len(samples.real)} real images"
    who, real_who = samples.patients, samples.real_patients
    return [
        summarise(
            name,
            values.astype(np.float64),
            patients=own,
            direction="higher",
            judge=samples.judge,
            subset=samples.subset,
            unit=unit,
            note=f"{sizes}; {note}" if note else sizes,
            seed=seed,
        )
        for name, values, own, unit, note in (
            ("precision", scores.precise, who, "of generated images", ""),
            ("recall", scores.recalled, real_who, "of real images", ""),
            ("density", scores.density, who, "", "about 1 for images of the real distribution"),
            ("coverage", scores.covered, real_who, "of real images", ""),
        )
    ]


def _radii(features: Floats, neighbours: int) -> Floats:
    distances = pairwise_distances(features, features)
    # Position 0 is the image itself, at distance 0.
    radii: Floats = np.partition(distances, neighbours, axis=1)[:, neighbours]
    return radii
