"""Fréchet distance: how far the features of generated images are from those of real ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from counterray.evaluation.intervals import Floats, Rows
from counterray.evaluation.metric import Metric
from counterray.evaluation.two_sample import both_checked, require_patients, two_sample_bootstrap

FRECHET_RESAMPLES = 200
"""Bootstrap resamples: each takes two eigendecompositions of D × D, so fewer than elsewhere."""


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians fitted to features: FID where the judge is Inception.

    ``|μ_g - μ_r|² + tr(Σ_g + Σ_r - 2 (Σ_g Σ_r)^½)`` with unbiased covariances; 0 is best. Small samples
    make it too large, by a bias that falls as 1/n and differs between generators.

    Args:
        generated: Features ``[n, D]``, n ≥ 2.
        real: Features ``[m, D]``, m ≥ 2.

    Raises:
        ValueError: If the features are no finite matrices of the same width, or a sample has one image.

    Reference: Heusel et al., 2017, https://arxiv.org/abs/1706.08500, equation 6; its bias: Chong and
        Forsyth, 2020, https://arxiv.org/abs/1911.07023.
    """
    return _distance(*both_checked(generated, real, "Fréchet distance", minimum=2))


def frechet_metric(
    generated: Tensor,
    real: Tensor,
    *,
    patients: Sequence[str],
    real_patients: Sequence[str],
    judge: str,
    subset: str = "",
    resamples: int = FRECHET_RESAMPLES,
    seed: int = 0,
) -> Metric:
    """The Fréchet distance with its interval, which covers sampling but not the bias of small samples.

    Args:
        generated: Features ``[n, D]``.
        real: Features ``[m, D]``.
        patients: Whose images the n generated ones were made from; their own names where from nobody's.
        real_patients: The patients of the m real images.
        judge: Label of the judge that gave the features.
        subset: What the number is restricted to.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Raises:
        ValueError: As `frechet_distance`, or if images do not each name a patient.
    """
    require_patients("Fréchet distance", generated, real, patients, real_patients)
    ours, theirs = both_checked(generated, real, "Fréchet distance", minimum=2)

    def statistic(rows: Rows, real_rows: Rows) -> Floats:
        if min(len(rows), len(real_rows)) < 2:
            return np.array([np.nan])
        return np.array([_distance(ours[rows], theirs[real_rows])])

    [interval] = two_sample_bootstrap(
        statistic, patients, real_patients, ends="centred", resamples=resamples, seed=seed
    )
    smallest, width = min(len(ours), len(theirs)), ours.shape[1]
    notes = [f"{len(ours)} generated against {len(theirs)} real images, {width} features"]
    if smallest <= width:
        notes.append(
            f"only {smallest} images for {width} features: strongly biased upwards, compare it with numbers "
            "of the same sample sizes only and prefer the kernel distance"
        )
    return Metric(
        name="frechet_distance",
        value=_distance(ours, theirs),
        low=max(interval.low, 0.0) if interval.low == interval.low else interval.low,
        high=interval.high,
        n=len(ours),
        judge=judge,
        direction="lower",
        subset=subset,
        note="; ".join(notes),
    )


def _distance(first: Floats, second: Floats) -> float:
    means = first.mean(axis=0) - second.mean(axis=0)
    one, two = (np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (first, second))
    root = _square_root(one)
    # tr (Σ_g Σ_r)^½ = tr (Σ_g^½ Σ_r Σ_g^½)^½, whose argument is symmetric: its eigenvalues are real and
    # stay so for covariances of lower rank than D, where the square root of the product is not stable.
    eigenvalues = np.linalg.eigvalsh(root @ two @ root)
    cross = np.sqrt(eigenvalues.clip(min=0)).sum()
    return float(max(means @ means + np.trace(one) + np.trace(two) - 2 * cross, 0.0))


def _square_root(matrix: Floats) -> Floats:
    eigenvalues, vectors = np.linalg.eigh(matrix)
    root: Floats = (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T
    return root
