"""Demographic parity: does the rate of positive decisions differ between groups?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from counterray.audits.errors import MINIMUM_PATIENTS, checked_groups, encoded_patients
from counterray.audits.group_gaps import (
    GroupGap,
    Reading,
    as_shipped_p_value,
    gap,
    rates_by_level,
    smallest_after_holm,
    welch_p_values,
)


def demographic_parity(
    decisions: ArrayLike,
    groups: ArrayLike,
    *,
    attribute: str,
    levels: Sequence[str],
    patients: Sequence[str],
    reading: Reading = "corrected",
    minimum_patients: int = MINIMUM_PATIENTS,
    seed: int = 0,
) -> GroupGap:
    """``P(Ŷ = 1 | A = a) = P(Ŷ = 1 | A = a')``: difference of 0 is parity.

    It is about association: groups may differ because they are differently ill, and a classifier that leans
    on the attribute may still have equal rates.

    Args:
        decisions: ``[N]``, true where the finding is called.
        groups: ``[N]`` position of each individual's level.
        attribute: Name of the attribute.
        levels: Names of its K levels.
        patients: The patient of each individual.
        reading: ``corrected``: Welch's test on patients. ``as_shipped``: see `as_shipped_p_value`.
        minimum_patients: Patients that each level needs.
        seed: Of the draws as shipped.

    Raises:
        AuditError: If the attribute has one level, or a level too few patients.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, equation 5.
    """
    called = np.asarray(decisions, dtype=bool)
    units = encoded_patients(patients, size=len(called))
    codes = checked_groups(attribute, groups, levels, units, minimum_patients=minimum_patients)
    rates = rates_by_level(called, codes, levels)
    if reading == "as_shipped":
        p_value = as_shipped_p_value(called, codes, attribute=attribute, seed=seed)
    else:
        p_value = smallest_after_holm(welch_p_values(called, codes, units))
    return GroupGap(
        name="demographic_parity", rates=rates, difference=gap(rates), p_value=p_value, reading=reading
    )
