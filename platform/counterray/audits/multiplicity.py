"""Corrected p-values over what is tested of one attribute: classifiers × findings × pairs of levels."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.stats import false_discovery_control

from counterray.audits.errors import AuditError
from counterray.evaluation.intervals import Floats

Correction = Literal["holm", "benjamini_yekutieli", "none"]


def corrected(p_values: Floats, correction: Correction) -> Floats:
    """Corrected p-values ``[m]`` over the whole array, which audits fill with the tests of one attribute.

    Raises:
        AuditError: If a p-value is no number in [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise AuditError("p-values must be numbers from 0 to 1; leave out tests that could not be made.")
    if not len(values) or correction == "none":
        return values.copy()
    return holm(values) if correction == "holm" else benjamini_yekutieli(values)


def strictest_level(alpha: float, tests: int, correction: Correction) -> float:
    """The level that the smallest p-value of a family has to reach: what each test can count on."""
    if correction == "holm":
        return alpha / tests
    if correction == "benjamini_yekutieli":
        return float(alpha / (tests * (1 / np.arange(1, tests + 1)).sum()))
    return alpha


def holm(p_values: Floats) -> Floats:
    """Controls the probability of any false rejection, whatever the dependence.

    For the i-th smallest of m: ``max_{j <= i} min(1, (m - j + 1) p_(j))``.

    Reference: Holm, 1979, Scandinavian Journal of Statistics 6(2), 65-70.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(p_values), 0, -1) * p_values[order]
    result = np.empty_like(p_values)
    result[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return result


def benjamini_yekutieli(p_values: Floats) -> Floats:
    """Controls the expected share of false rejections, whatever the dependence.

    For the i-th smallest of m: ``min_{j >= i} min(1, m Σ_k 1/k p_(j) / j)``.

    Reference: Benjamini and Yekutieli, 2001, https://doi.org/10.1214/aos/1013699998.
    """
    values: Floats = false_discovery_control(p_values, method="by")
    return values
