"""Rates of decisions by group and tests of their gaps: what the associational audits share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_ind_from_stats, ttest_rel

from counterray.audits.clustered import patient_sums
from counterray.audits.errors import AuditError, Codes
from counterray.audits.multiplicity import holm
from counterray.evaluation.intervals import Floats

Reading = Literal["corrected", "as_shipped"]
"""``corrected`` is what the paper means; ``as_shipped`` is what its published code computes, kept to
reproduce its numbers."""

AS_SHIPPED_DRAWS = 1000
"""Values that the published code draws with replacement from each group, whatever the group's size."""


@dataclass(frozen=True, kw_only=True)
class GroupGap:
    """How a rate of decisions differs between the levels of an attribute.

    Attributes:
        name: Name of the audit.
        rates: Level to its rate, also by stratum as ``<level>, y = 1`` where there are several.
        difference: Largest less smallest rate (of the worst stratum): 0 is best, 1 worst.
        p_value: Of equal rates; over several pairs the smallest after Holm. NaN where the published code
            divides by zero.
        reading: See `Reading`.
    """

    name: str
    rates: Mapping[str, float]
    difference: float
    p_value: float
    reading: Reading


def rates_by_level(decisions: NDArray[np.bool_], groups: Codes, levels: Sequence[str]) -> dict[str, float]:
    """Share of positive decisions of each level; NaN for a level without individuals."""
    return {
        level: float(decisions[groups == k].mean()) if (groups == k).any() else math.nan
        for k, level in enumerate(levels)
    }


def gap(rates: Mapping[str, float]) -> float:
    """Largest less smallest rate; NaN if one is unknown."""
    return max(rates.values()) - min(rates.values()) if all(map(math.isfinite, rates.values())) else math.nan


def welch_p_values(decisions: NDArray[np.bool_], groups: Codes, patients: Codes) -> list[float]:
    """Welch's test of equal rates for each pair of levels, on one mean for each patient and level.

    Patients are the units, so that several images of one patient are no more evidence than one.
    """
    units = {
        k: _patient_means(decisions[groups == k].astype(np.float64), patients[groups == k])
        for k in np.unique(groups)
    }
    return [_welch(units[a], units[b]) for a, b in combinations(units, 2)]


def as_shipped_p_value(decisions: NDArray[np.bool_], groups: Codes, *, attribute: str, seed: int) -> float:
    """The published code's test: a paired t-test on unrelated draws from the two groups.

    1000 values are drawn with replacement from each group and paired as they come. The standard error is that
    of 1000 individuals whatever the group's size, so the test rejects about half of all true nulls.

    Raises:
        AuditError: If there are not two levels, the only case that the code has.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, public code, notebook cell 2.
    """
    found = np.unique(groups)
    if len(found) != 2:
        raise AuditError(
            f"Attribute {attribute!r} has {len(found)} levels; reading = 'as_shipped' exists for 2. Use "
            "reading = 'corrected'."
        )
    random = np.random.default_rng(seed)
    first, second = (random.choice(decisions[groups == k], size=AS_SHIPPED_DRAWS) for k in found)
    difference = first.astype(np.float64) - second
    if np.ptp(difference) == 0:
        return math.nan
    return float(ttest_rel(first.astype(np.float64), second.astype(np.float64)).pvalue)


def smallest_after_holm(p_values: Sequence[float]) -> float:
    """One p-value for "all are equal" from those of the pairs."""
    return float(holm(np.asarray(p_values, dtype=np.float64)).min())


def _patient_means(values: Floats, patients: Codes) -> Floats:
    _, codes = np.unique(patients, return_inverse=True)
    means: Floats = patient_sums(values, codes) / patient_sums(np.ones(len(values)), codes)
    return means


def _welch(first: Floats, second: Floats) -> float:
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return 1.0 if first[0] == second[0] else 0.0
    # From their moments: on the values SciPy warns where one group is constant, which is no defect here.
    moments = [(part.mean(), part.std(ddof=1), len(part)) for part in (first, second)]
    return float(ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue)
