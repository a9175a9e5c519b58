"""Equalised odds: do sensitivity or false alarms differ between groups?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from counterray.audits.errors import MINIMUM_PATIENTS, checked_groups, checked_labels, encoded_patients
from counterray.audits.group_gaps import (
    GroupGap,
    gap,
    rates_by_level,
    smallest_after_holm,
    welch_p_values,
)


def equalised_odds(
    decisions: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    attribute: str,
    levels: Sequence[str],
    patients: Sequence[str],
    minimum_patients: int = MINIMUM_PATIENTS,
) -> GroupGap:
    """``P(Ŷ = 1 | A = a, Y = y)`` equal over a, for y = 0 and y = 1: the worse difference of the two counts.

    Args:
        decisions: ``[N]``, true where the finding is called.
        labels: ``[N]`` 1, 0 or NaN for unknown; unknown ones are left out.
        groups: ``[N]`` position of each individual's level.
        attribute: Name of the attribute.
        levels: Names of its K levels.
        patients: The patient of each individual.
        minimum_patients: Patients that each level needs with the finding, and without it.

    Returns:
        Rates by ``<level>, y = 0`` and ``y = 1``; the p-value is the smallest over both strata and all pairs
        after Holm.

    Raises:
        AuditError: If the attribute has one level, or a level too few patients in a stratum.

    Reference: Hardt et al., 2016, https://arxiv.org/abs/1610.02413, definition 2.1. The paper's code has no
        such test.
    """
    called = np.asarray(decisions, dtype=bool)
    truth = checked_labels("labels", labels, called.shape)
    units = encoded_patients(patients, size=len(called))
    rates: dict[str, float] = {}
    gaps, p_values = [], []
    for stratum, words in ((0, "without the finding"), (1, "with the finding")):
        rows = truth == stratum
        codes = checked_groups(
            f"{attribute} among those {words}",
            np.asarray(groups)[rows],
            levels,
            units[rows],
            minimum_patients=minimum_patients,
        )
        here = rates_by_level(called[rows], codes, levels)
        rates |= {f"{level}, y = {stratum}": rate for level, rate in here.items()}
        gaps.append(gap(here))
        p_values += welch_p_values(called[rows], codes, units[rows])
    return GroupGap(
        name="equalised_odds",
        rates=rates,
        difference=max(gaps),
        p_value=smallest_after_holm(p_values),
        reading="corrected",
    )
