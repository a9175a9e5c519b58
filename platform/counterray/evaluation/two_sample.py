"""Two samples of images, such as generated and real ones, and intervals of numbers that compare them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from counterray.evaluation.features import checked
from counterray.evaluation.intervals import (
    CONFIDENCE,
    RESAMPLES,
    Floats,
    Interval,
    Rows,
    patient_resamples,
)


@dataclass(frozen=True, kw_only=True)
class TwoSamples:
    """Features of n generated and of m real images, and whose images they are.

    Attributes:
        generated: ``[n, D]``.
        real: ``[m, D]``.
        patients: Whose images the n generated ones were made from; their own names where from nobody's.
        real_patients: The patients of the m real images.
        judge: Label of the judge that gave the features.
        subset: What the images are restricted to, such as one finding; empty for all.

    Raises:
        ValueError: If images do not each name a patient.
    """

    generated: Tensor
    real: Tensor
    patients: Sequence[str]
    real_patients: Sequence[str]
    judge: str
    subset: str = ""

    def __post_init__(self) -> None:
        for kind, rows, named in (
            ("generated", self.generated, self.patients),
            ("real", self.real, self.real_patients),
        ):
            if len(rows) != len(named):
                raise ValueError(
                    f"Features are given of {len(rows)} {kind} images but {len(named)} patients; one each "
                    "is needed, since intervals resample patients."
                )

    def arrays(self, metric: str, *, minimum: int) -> tuple[Floats, Floats]:
        """The features of both samples, see `both_checked`."""
        return both_checked(self.generated, self.real, metric, minimum=minimum)


def two_sample_bootstrap(
    statistic: Callable[[Rows, Rows], Floats],
    first_patients: Sequence[str],
    second_patients: Sequence[str],
    *,
    ends: Literal["percentile", "centred"] = "percentile",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of K statistics of two samples, resampling the patients of both together.

    A patient who has images in both samples (a test patient and the edits of that patient) is drawn with
    all of them, so that what the samples share cancels as it does in the statistic.

    Args:
        statistic: Rows of the first and rows of the second sample to ``[K]`` values; NaN where a resample
            does not allow a value.
        first_patients: The patient of each row of the first sample.
        second_patients: The patient of each row of the second sample.
        ends: ``percentile`` takes the resamples' percentiles. ``centred`` shifts them so that their median
            is the samples' own value, for a statistic that repeated rows push to one side: the Fréchet
            distance of two resamples is larger than that of the samples.
        resamples: Number of resamples.
        seed: Of the draws.

    Returns:
        K intervals; NaN where one sample has fewer than two patients.

    Reference: Efron and Tibshirani, 1993, An Introduction to the Bootstrap, sections 8.3 and 13.3; drawing
        patients: Field and Welsh, 2007, J. R. Stat. Soc. B 69(3).
    """
    size = len(first_patients)
    point = statistic(np.arange(size), np.arange(len(second_patients)))
    if min(len(set(first_patients)), len(set(second_patients))) < 2:
        return [Interval(math.nan, math.nan)] * len(point)
    values = []
    for rows in patient_resamples([*first_patients, *second_patients], resamples=resamples, seed=seed):
        first, second = rows[rows < size], rows[rows >= size] - size
        if len(first) and len(second):  # a draw of few patients can miss one sample
            values.append(statistic(first, second))
    drawn = np.stack(values)
    return [_interval(column, float(value), ends) for column, value in zip(drawn.T, point, strict=True)]


def both_checked(generated: Tensor, real: Tensor, metric: str, *, minimum: int) -> tuple[Floats, Floats]:
    """Features of two samples as float64 arrays.

    Args:
        generated: ``[n, D]``.
        real: ``[m, D]``.
        metric: What they are for, for messages.
        minimum: Images that each sample needs.

    Raises:
        ValueError: If they are no finite matrices of the same width, or a sample is too small.
    """
    first, second = checked(generated, f"{metric}, generated"), checked(real, f"{metric}, real")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{metric}: generated images have {first.shape[1]} features and real ones {second.shape[1]}; "
            "take both from one judge."
        )
    if min(len(first), len(second)) < minimum:
        raise ValueError(
            f"{metric} needs at least {minimum} images of each kind; there are {len(first)} generated and "
            f"{len(second)} real ones."
        )
    return first.numpy(), second.numpy()


def pairwise_distances(first: Floats, second: Floats) -> Floats:
    """Euclidean distances ``[n, m]`` of the rows of ``first [n, D]`` and ``second [m, D]``, exact at 0."""
    # Through the inner product, equal rows would come out at about 1e-8 instead of 0.
    distance = torch.cdist(
        torch.from_numpy(first), torch.from_numpy(second), compute_mode="donot_use_mm_for_euclid_dist"
    )
    values: Floats = distance.numpy()
    return values


def times_drawn(rows: Rows, size: int) -> Floats:
    """How often each of ``size`` images is among the rows of a resample: weights for `mean_of_pairs`."""
    return np.bincount(rows, minlength=size).astype(np.float64)


def mean_of_pairs(values: Floats, weights: Floats) -> float:
    """Weighted mean over pairs of different images, ``Σ_{i≠j} w_i w_j v_ij / ((Σ w)² - Σ w²)``.

    An image that a resample drew twice is no pair of images: as one, it would bias every resample.

    Args:
        values: ``[n, n]``, 0 on the diagonal.
        weights: ``[n]``, how often each image counts.

    Returns:
        The mean; NaN where only one image counts.
    """
    pairs = weights.sum() ** 2 - (weights**2).sum()
    return float(weights @ values @ weights / pairs) if pairs else math.nan


def _interval(values: Floats, point: float, ends: Literal["percentile", "centred"]) -> Interval:
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(math.nan, math.nan)
    tail = 50 * (1 - CONFIDENCE)
    low, middle, high = np.percentile(known, [tail, 50, 100 - tail], method="inverted_cdf")
    shift = point - middle if ends == "centred" else 0.0
    return Interval(float(low + shift), float(high + shift))
