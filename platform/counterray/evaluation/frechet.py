"""Fréchet distance: how far the features of generated images are from those of real ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from counterray.evaluation.intervals import Floats, Rows
from counterray.evaluation.metric import Metric
from counterray.evaluation.two_sample import TwoSamples, both_checked, two_sample_bootstrap

FRECHET_RESAMPLES = 200
"""Bootstrap resamples: each takes two eigendecompositions of D × D, so fewer than elsewhere."""

SPLITS = 10
"""Random splits into halves, two distances each, for the extrapolation."""


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


def frechet_metrics(
    samples: TwoSamples, *, resamples: int = FRECHET_RESAMPLES, seed: int = 0
) -> list[Metric]:
    """The Fréchet distance as it is usually given, and extrapolated to samples without end.

    ``frechet_distance``: its interval covers sampling but not the bias of small samples.
    ``frechet_distance_extrapolated``: the bias falls as 1/n, so twice the distance less that of halves of the
    samples is free of it; it can be below 0. Its interval is the distance's, shifted, since a small change
    of the samples moves both alike. NaN where halves have no more images than features: the law does not
    hold there.

    Args:
        samples: Generated and real images, n, m ≥ 2.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap and of the halves.

    Raises:
        ValueError: As `frechet_distance`.

    Reference: extrapolation: Chong and Forsyth, 2020, https://arxiv.org/abs/1911.07023, section 3, from two
        sample sizes in place of fifteen, and of both samples.
    """
    ours, theirs = samples.arrays("Fréchet distance", minimum=2)

    def statistic(rows: Rows, real_rows: Rows) -> Floats:
        if min(len(rows), len(real_rows)) < 2:
            return np.array([np.nan])
        return np.array([_distance(ours[rows], theirs[real_rows])])

    [interval] = two_sample_bootstrap(
        statistic,
        samples.patients,
        samples.real_patients,
        ends="centred",
        resamples=resamples,
        seed=seed,
    )
    value = _distance(ours, theirs)
    unbiased = 2 * value - _mean_of_halves(ours, theirs, samples.patients, samples.real_patients, seed=seed)
    width = ours.shape[1]
    sizes = f"{len(ours)} generated against {len(theirs)} real images, {width} features"
    low, high = interval.low, interval.high
    shift = unbiased - value
    return [
        Metric(
            name=name,
            value=number,
            low=start,
            high=end,
            n=len(ours),
            judge=samples.judge,
            direction="lower",
            subset=samples.subset,
            note=note,
        )
        for name, number, start, end, note in (
            (
                "frechet_distance",
                value,
                float(np.maximum(low, 0.0)),
                high,
                f"{sizes}; {_bias_note(min(len(ours), len(theirs)), width, -shift)}",
            ),
            (
                "frechet_distance_extrapolated",
                unbiased,
                low + shift,
                high + shift,
                f"not known: halves of the samples have no more images than features; {sizes}"
                if np.isnan(unbiased)
                else f"to samples without end; {sizes}",
            ),
        )
    ]


def _bias_note(smallest: int, width: int, bias: float) -> str:
    if smallest <= width:
        return (
            f"only {smallest} images for {width} features: strongly biased upwards, compare it with numbers "
            "of the same sample sizes only and prefer the kernel distance"
        )
    if np.isnan(bias):
        return "biased upwards: compare it with numbers of the same sample sizes only"
    return (
        f"biased upwards by about {max(bias, 0.0):.2g}: compare it with numbers of the same sample sizes only"
    )


def _mean_of_halves(
    ours: Floats, theirs: Floats, patients: Sequence[str], real_patients: Sequence[str], *, seed: int
) -> float:
    """Mean distance between halves of both samples, patients undivided; NaN where halves are too small."""
    random = np.random.default_rng(seed)
    distances = []
    for _ in range(SPLITS):
        mine, yours = _halves(patients, random), _halves(real_patients, random)
        if min(len(rows) for rows in (*mine, *yours)) <= ours.shape[1]:
            return float("nan")
        distances += [_distance(ours[a], theirs[b]) for a, b in zip(mine, yours, strict=True)]
    return float(np.mean(distances))


def _halves(patients: Sequence[str], random: np.random.Generator) -> tuple[Rows, Rows]:
    names, codes = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    first = random.permutation(len(names)) < len(names) // 2
    return np.flatnonzero(first[codes]), np.flatnonzero(~first[codes])


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
