"""Means and resamples that take patients, not images, as independent; for many columns at once.

Letters: C = columns (targets × pairs × quantities), N = individuals, P = patients, B = resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from counterray.audits.errors import Codes
from counterray.evaluation.intervals import CONFIDENCE, Floats

_TIE = 1e-12
"""Relative spread below which values count as equal: rounding, not evidence."""


def patient_sums(values: Floats, patients: Codes) -> Floats:
    """Sums ``[..., P]`` over each patient's individuals of ``values [..., N]``."""
    order = np.argsort(patients, kind="stable")
    starts = np.flatnonzero(np.diff(patients[order], prepend=-1))
    sums: Floats = np.add.reduceat(values[..., order], starts, axis=-1)
    return sums


@dataclass(frozen=True)
class ClusteredMeans:
    """Means of C columns with the uncertainty that comes from the patients.

    With ``s_p`` and ``n_p`` the sum and the number of patient p's individuals, ``mean = Σ s_p / Σ n_p``,
    ``e_p = s_p - mean n_p`` and ``error² = P / (P - 1) Σ e_p² / (Σ n_p)²``: the linearised variance of a
    ratio of cluster totals (Cochran, 1977, Sampling Techniques, section 9A.2). Repeating every patient's
    images changes neither.

    Attributes:
        mean: ``[C]``.
        error: ``[C]`` standard errors; 0 where nothing varies.
        skewness: ``[C]`` of the ``e_p``; 0 where nothing varies.
        patients: P.
    """

    mean: Floats
    error: Floats
    skewness: Floats
    patients: int

    @classmethod
    def of(cls, values: Floats, patients: Codes) -> ClusteredMeans:
        """Of ``values [..., N]``; the fields keep the leading shape."""
        counts = patient_sums(np.ones(len(patients)), patients)
        sums = patient_sums(values, patients)
        size, total = len(counts), counts.sum()
        mean = sums.sum(axis=-1) / total
        residual = sums - mean[..., None] * counts
        second = (residual**2).mean(axis=-1)
        # What is left of equal values after rounding is no spread.
        scale = (np.abs(sums).max(axis=-1) * _TIE) ** 2
        second = np.where(second <= scale, 0.0, second)
        error = np.sqrt(size / (size - 1) * second * size) / total
        with np.errstate(invalid="ignore", divide="ignore"):
            skewness = (residual**3).mean(axis=-1) / second**1.5
        return cls(mean, error, np.where(second > 0, skewness, 0.0), size)

    def interval(self) -> tuple[Floats, Floats]:
        """Ends of the t intervals, P - 1 degrees of freedom."""
        half = student.ppf(0.5 + CONFIDENCE / 2, self.patients - 1) * self.error
        return self.mean - half, self.mean + half

    def p_greater(self, bound: float | Floats) -> Floats:
        """One-sided p-values ``[C]`` of "the mean is at most ``bound``".

        Hall's transformation takes the skewness out of the t statistic, which matters because effects are
        mostly zero with rare jumps: with ``W = (mean - bound) / (error √P)`` and skewness γ,
        ``√P (W + γ W² / 3 + γ² W³ / 27 + γ / 6P)`` is compared with t of P - 1 degrees of freedom.
        Without any spread the answer is 0 or 1.

        Reference: Hall, 1992, On the removal of skewness by transformation, J. R. Stat. Soc. B 54(1),
            equation 2.2.
        """
        root = math.sqrt(self.patients)
        distance = self.mean - bound
        ratio = distance / np.where(self.error > 0, self.error * root, 1.0)
        gamma = self.skewness
        transformed = root * (
            ratio + gamma * ratio**2 / 3 + gamma**2 * ratio**3 / 27 + gamma / (6 * self.patients)
        )
        p = student.sf(transformed, self.patients - 1)
        return np.where(self.error > 0, p, np.where(distance > 0, 0.0, 1.0))

    def p_less(self, bound: float | Floats) -> Floats:
        """One-sided p-values ``[C]`` of "the mean is at least ``bound``"; see `p_greater`."""
        mirrored = ClusteredMeans(-self.mean, self.error, -self.skewness, self.patients)
        return mirrored.p_greater(-np.asarray(bound))


def patient_weights(patients: int, *, resamples: int, seed: int) -> Floats:
    """How often each resample draws each patient, ``[B, P]``: patients with replacement, P of them."""
    random = np.random.default_rng(seed)
    return random.multinomial(patients, np.full(patients, 1 / patients), size=resamples).astype(np.float64)


def resampled_ratios(weights: Floats, numerator: Floats, denominator: Floats, patients: Codes) -> Floats:
    """Ratios of totals in each resample, ``[B, ...]``; NaN where the denominator is not drawn.

    Args:
        weights: ``[B, P]``, see `patient_weights`.
        numerator: ``[..., N]``.
        denominator: ``[..., N]``, of the numerator's shape or one that broadcasts to it.
        patients: ``[N]``.
    """
    above, below = (patient_sums(values, patients) for values in (numerator, denominator))
    totals = [
        (weights @ part.reshape(-1, part.shape[-1]).T).reshape(len(weights), *part.shape[:-1])
        for part in (above, below)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios: Floats = totals[0] / np.broadcast_to(totals[1], totals[0].shape)
    return ratios


def resampled_medians(weights: Floats, values: Floats, patients: Codes) -> Floats:
    """Lower medians of ``values [..., N]`` in each resample, ``[B, ...]``."""
    flat = values.reshape(-1, values.shape[-1])
    medians = np.empty((len(weights), len(flat)))
    light = weights.astype(np.float32)  # whole numbers far below 2^24: exact, and half the memory traffic
    for column, row in enumerate(flat):
        order = np.argsort(row, kind="stable")
        mass = np.cumsum(light[:, patients[order]], axis=1)
        half = mass[:, -1:] / 2
        medians[:, column] = row[order][(mass < half).sum(axis=1)]
    return medians.reshape(len(weights), *values.shape[:-1])


def percentiles(draws: Floats) -> tuple[Floats, Floats]:
    """Ends of the percentile intervals over the first axis; NaN draws are left out."""
    tail = 50 * (1 - CONFIDENCE)
    empty = np.isnan(draws).all(axis=0)
    filled = np.where(empty, 0.0, draws)
    take = np.nanpercentile if np.isnan(filled).any() else np.percentile
    low, high = take(filled, [tail, 100 - tail], axis=0, method="inverted_cdf")
    return np.where(empty, math.nan, low), np.where(empty, math.nan, high)
