"""Diversity: do generated images of a class differ from each other as much as real ones do?"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from counterray.evaluation.features import checked
from counterray.evaluation.intervals import Floats, Rows
from counterray.evaluation.metric import Metric
from counterray.evaluation.two_sample import (
    TwoSamples,
    mean_of_pairs,
    pairwise_distances,
    times_drawn,
    two_sample_bootstrap,
)


def mean_pairwise_distance(features: Tensor) -> float:
    """Mean Euclidean distance between two different images' features; 0 where all images are one.

    Args:
        features: ``[n, D]``, n ≥ 2.

    Raises:
        ValueError: If the features are no finite matrix or of one image.
    """
    values = _several(features, "Mean pairwise distance")
    return mean_of_pairs(pairwise_distances(values, values), np.ones(len(values)))


def feature_deviation(features: Tensor) -> float:
    """Standard deviation of each feature over the images, averaged over features.

    Args:
        features: ``[n, D]``, n ≥ 2.

    Raises:
        ValueError: If the features are no finite matrix or of one image.
    """
    return _deviation(_several(features, "Feature deviation"))


def diversity_metrics(samples: TwoSamples, *, seed: int = 0) -> list[Metric]:
    """Spread of generated images' features, of real ones of the same class, and the ratio of both.

    A ratio of 1 is what real images have. Below, the generator repeats itself; above, its images scatter
    more than real ones, which is no merit either.

    Args:
        samples: Generated and real images of one class, n, m ≥ 2; the class is their subset.
        seed: Of the bootstrap.

    Raises:
        ValueError: If the features are no finite matrices of the same width, or a sample has one image.

    Reference: mean pairwise distance: Zhu et al., 2017, https://arxiv.org/abs/1711.11586, section 5.2, with
        a named judge's features in place of LPIPS.
    """
    ours, theirs = samples.arrays("Diversity", minimum=2)
    within, real_within = pairwise_distances(ours, ours), pairwise_distances(theirs, theirs)

    def statistic(rows: Rows, real_rows: Rows) -> Floats:
        pair = mean_of_pairs(within, times_drawn(rows, len(ours)))
        real_pair = mean_of_pairs(real_within, times_drawn(real_rows, len(theirs)))
        spread, real_spread = _deviation(ours[rows]), _deviation(theirs[real_rows])
        values = [pair, real_pair, _ratio(pair, real_pair), spread, real_spread, _ratio(spread, real_spread)]
        return np.array(values)

    point = statistic(np.arange(len(ours)), np.arange(len(theirs)))
    intervals = two_sample_bootstrap(statistic, samples.patients, samples.real_patients, seed=seed)
    prefix = f"{samples.subset}, " if samples.subset else ""
    where = (
        ("pairwise_distance", f"{prefix}generated"),
        ("pairwise_distance", f"{prefix}real"),
        ("pairwise_distance_ratio", samples.subset),
        ("feature_deviation", f"{prefix}generated"),
        ("feature_deviation", f"{prefix}real"),
        ("feature_deviation_ratio", samples.subset),
    )
    sizes = f"{len(ours)} generated and {len(theirs)} real images"
    return [
        Metric(
            name=name,
            value=float(point[k]),
            low=intervals[k].low,
            high=intervals[k].high,
            n=len(theirs) if place.endswith("real") else len(ours),
            judge=samples.judge,
            direction="higher" if name.endswith("ratio") else "none",
            subset=place,
            note=f"{sizes}; 1 is as diverse as real images" if name.endswith("ratio") else "",
        )
        for k, (name, place) in enumerate(where)
    ]


def _several(features: Tensor, metric: str) -> Floats:
    values: Floats = checked(features, metric).numpy()
    if len(values) < 2:
        raise ValueError(f"{metric} needs at least 2 images; there is {len(values)}.")
    return values


def _deviation(values: Floats) -> float:
    return float(values.std(axis=0, ddof=1).mean()) if len(values) > 1 else float("nan")


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else float("nan")
