"""Equivalence: evidence that an effect is smaller than a margin, which a large p-value never is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from counterray.audits.clustered import ClusteredMeans
from counterray.audits.errors import Codes
from counterray.evaluation.intervals import CONFIDENCE, Floats


def equivalence_of_means(means: ClusteredMeans, margin: float) -> Floats:
    """p-values ``[C]`` of two one-sided tests of ``|mean| >= margin``; small means equivalent.

    ``max(p(mean >= margin), p(mean <= -margin))``, and never below `unseen`.

    Reference: Schuirmann, 1987, https://doi.org/10.1007/BF01068419.
    """
    both = np.maximum(means.p_less(margin), means.p_greater(-margin))
    return np.maximum(both, unseen(means.patients, margin))


def below_margin(means: ClusteredMeans, margin: float) -> Floats:
    """p-values ``[C]`` of the one-sided test of ``mean >= margin``, for what cannot fall below zero."""
    return np.maximum(means.p_less(margin), unseen(means.patients, margin))


def unseen(patients: int, margin: float) -> float:
    """Probability ``(1 - margin)^P`` that P patients show nothing of an effect of mean ``margin``.

    Scores lie in [0, 1], so a mean effect of ``margin`` may be one patient in ``1 / margin`` who moves from
    0 to 1. A sample without any such patient has no spread and would prove anything to a t-test; this is the
    least p-value that it can honestly have.
    """
    return float((1 - margin) ** patients)


def rate_below_margin(means: ClusteredMeans, margin: float) -> Floats:
    """p-values ``[C]`` of ``rate >= margin`` for means of zeros and ones.

    Exact binomial with the effective number of patients of `effective_patients`:
    ``P(Binomial(n*, margin) <= n* rate)``, read off the beta distribution.

    Reference: Korn and Graubard, 1998, Survey Methodology 24(2), 193-201.
    """
    size = effective_patients(means)
    hits = means.mean * size
    with np.errstate(invalid="ignore"):
        p = beta.sf(margin, hits + 1, size - hits)
    return np.where(means.mean >= 1, 1.0, p)


def rate_interval(means: ClusteredMeans) -> tuple[Floats, Floats]:
    """Ends of the exact (Clopper-Pearson) intervals of rates, of `effective_patients`.

    A bootstrap interval of a rate that was never seen is [0, 0]; this one is honest about n.
    """
    size = effective_patients(means)
    hits, tail = means.mean * size, (1 - CONFIDENCE) / 2
    with np.errstate(invalid="ignore"):
        low, high = beta.ppf(tail, hits, size - hits + 1), beta.ppf(1 - tail, hits + 1, size - hits)
    return np.where(means.mean <= 0, 0.0, low), np.where(means.mean >= 1, 1.0, high)


def rates_among(
    seen: NDArray[np.bool_], among: NDArray[np.bool_], patients: Codes
) -> tuple[Floats, Floats, Floats]:
    """Rates of what is seen among some individuals, and the ends of their `rate_interval`; each ``[T, Q]``.

    Args:
        seen: ``[T, Q, N]``.
        among: ``[T, N]`` whom T's rates are about: those with the disease, or of one level. A rate among
            nobody is NaN; the interval of one patient's, whose spread cannot be known, is 0 to 1.
        patients: ``[N]``.
    """
    value, low, high = (np.full(seen.shape[:2], math.nan) for _ in range(3))
    for row, here in enumerate(among):
        units = np.unique(patients[here], return_inverse=True)[1].astype(np.int64)
        if not len(units):
            continue
        rate = seen[row][:, here].mean(axis=-1)
        if units.max() == 0:
            value[row], low[row], high[row] = rate, 0.0, 1.0
            continue
        means = ClusteredMeans.of(seen[row][:, here].astype(np.float64), units)
        value[row] = means.mean
        low[row], high[row] = rate_interval(means)
    return value, low, high


def effective_patients(means: ClusteredMeans) -> Floats:
    """``n* = min(P, rate (1 - rate) / error²)`` for means of zeros and ones; P where nothing varies.

    Not more than P, so that several images of a patient never count as several patients.
    """
    variance = np.clip(means.mean * (1 - means.mean), 0, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = variance / means.error**2
    return np.where(means.error > 0, np.minimum(size, means.patients), float(means.patients))
