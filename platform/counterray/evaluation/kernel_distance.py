"""Kernel distance: like the Fréchet distance, but unbiased whatever the number of images."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from counterray.evaluation.intervals import Floats, Rows
from counterray.evaluation.metric import Metric
from counterray.evaluation.two_sample import (
    TwoSamples,
    both_checked,
    mean_of_pairs,
    times_drawn,
    two_sample_bootstrap,
)

DEGREE = 3
OFFSET = 1.0
"""Of the polynomial kernel: Bińkowski et al., 2018, section 4."""


def polynomial_kernel(first: Floats, second: Floats) -> Floats:
    """``(x · y / D + 1)³`` for rows ``x`` of ``first [n, D]`` and ``y`` of ``second [m, D]``: ``[n, m]``."""
    values: Floats = (first @ second.T / first.shape[1] + OFFSET) ** DEGREE
    return values


def kernel_distance(generated: Tensor, real: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of features: KID where the judge is Inception.

    ``mean_{i≠j} k(g_i, g_j) + mean_{i≠j} k(r_i, r_j) - 2 mean_{ij} k(g_i, r_j)`` over all images at once, so
    no draw of subsets enters. 0 is best; being unbiased, it is below 0 about half of the time for two
    samples of one distribution.

    Args:
        generated: Features ``[n, D]``, n ≥ 2.
        real: Features ``[m, D]``, m ≥ 2.

    Raises:
        ValueError: If the features are no finite matrices of the same width, or a sample has one image.

    Reference: Gretton et al., 2012, JMLR 13, equation 3; kernel: Bińkowski et al., 2018,
        https://arxiv.org/abs/1801.01401, section 4. Departs from the latter, which averages over subsets.
    """
    ours, theirs = both_checked(generated, real, "Kernel distance", minimum=2)
    return _discrepancy(*_kernels(ours, theirs), np.ones(len(ours)), np.ones(len(theirs)))


def kernel_metric(samples: TwoSamples, *, seed: int = 0) -> Metric:
    """The kernel distance with a bootstrap interval over patients.

    Args:
        samples: Generated and real images, n, m ≥ 2.
        seed: Of the bootstrap.

    Raises:
        ValueError: As `kernel_distance`.
    """
    ours, theirs = samples.arrays("Kernel distance", minimum=2)
    kernels = _kernels(ours, theirs)

    def statistic(rows: Rows, real_rows: Rows) -> Floats:
        # Rows as weights: an image drawn twice must not count as its own neighbour, or the resample's value
        # would be biased upwards by k(x, x).
        weights, real_weights = times_drawn(rows, len(ours)), times_drawn(real_rows, len(theirs))
        return np.array([_discrepancy(*kernels, weights, real_weights)])

    [interval] = two_sample_bootstrap(statistic, samples.patients, samples.real_patients, seed=seed)
    return Metric(
        name="kernel_distance",
        value=_discrepancy(*kernels, np.ones(len(ours)), np.ones(len(theirs))),
        low=interval.low,
        high=interval.high,
        n=len(ours),
        judge=samples.judge,
        direction="lower",
        subset=samples.subset,
        note=f"unbiased; {len(ours)} generated against {len(theirs)} real images, {ours.shape[1]} features",
    )


def _kernels(ours: Floats, theirs: Floats) -> tuple[Floats, Floats, Floats]:
    """Kernels within the generated and within the real images, without their diagonals, and across."""
    within, real_within = polynomial_kernel(ours, ours), polynomial_kernel(theirs, theirs)
    np.fill_diagonal(within, 0.0)
    np.fill_diagonal(real_within, 0.0)
    return within, real_within, polynomial_kernel(ours, theirs)


def _discrepancy(
    within: Floats, real_within: Floats, across: Floats, weights: Floats, real_weights: Floats
) -> float:
    inside = mean_of_pairs(within, weights) + mean_of_pairs(real_within, real_weights)
    between = weights @ across @ real_weights / (weights.sum() * real_weights.sum())
    return float(inside - 2 * between)
