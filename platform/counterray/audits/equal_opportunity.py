"""Equal opportunity: does sensitivity differ between groups?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterray.audits.demographic_parity import demographic_parity
from counterray.audits.errors import (
    MINIMUM_PATIENTS,
    Codes,
    checked_groups,
    checked_labels,
    encoded_patients,
)
from counterray.audits.group_gaps import (
    GroupGap,
    Reading,
    gap,
    rates_by_level,
    smallest_after_holm,
    welch_p_values,
)

AS_SHIPPED_SEED_OFFSET = 1
"""The published code draws for this test after those of demographic parity."""


def equal_opportunity(
    decisions: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    attribute: str,
    levels: Sequence[str],
    patients: Sequence[str],
    reading: Reading = "corrected",
    minimum_patients: int = MINIMUM_PATIENTS,
    seed: int = 0,
) -> GroupGap:
    """``P(Ŷ = 1 | A = a, Y = 1) = P(Ŷ = 1 | A = a', Y = 1)``: difference of 0 is equal sensitivity.

    As shipped, the strata ``Y = 0`` and ``Y = 1`` are pooled before the test, which makes it demographic
    parity with other random draws.

    Args:
        decisions: ``[N]``, true where the finding is called.
        labels: ``[N]`` 1, 0 or NaN for unknown; unknown ones are left out.
        groups: ``[N]`` position of each individual's level.
        attribute: Name of the attribute.
        levels: Names of its K levels.
        patients: The patient of each individual.
        reading: See above; ``corrected`` is Welch's test on patients with the finding.
        minimum_patients: Patients with the finding that each level needs.
        seed: Of the draws as shipped.

    Raises:
        AuditError: If the attribute has one level, or a level too few patients with the finding.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, equation 6; Hardt et al., 2016,
        https://arxiv.org/abs/1610.02413, definition 2.2.
    """
    called = np.asarray(decisions, dtype=bool)
    truth = checked_labels("labels", labels, called.shape)
    if reading == "as_shipped":
        pooled = demographic_parity(
            called,
            groups,
            attribute=attribute,
            levels=levels,
            patients=patients,
            reading=reading,
            minimum_patients=minimum_patients,
            seed=seed + AS_SHIPPED_SEED_OFFSET,
        )
        return replace(pooled, name="equal_opportunity")
    units = encoded_patients(patients, size=len(called))
    return _among_the_ill(
        called,
        truth == 1,
        np.asarray(groups),
        units,
        attribute=attribute,
        levels=levels,
        minimum_patients=minimum_patients,
    )


def _among_the_ill(
    called: NDArray[np.bool_],
    ill: NDArray[np.bool_],
    groups: Codes,
    units: Codes,
    *,
    attribute: str,
    levels: Sequence[str],
    minimum_patients: int,
) -> GroupGap:
    """The corrected reading: sensitivity by level and Welch's test of it; every array is ``[N]``."""
    codes = checked_groups(
        f"{attribute} among those with the finding",
        groups[ill],
        levels,
        units[ill],
        minimum_patients=minimum_patients,
    )
    rates = rates_by_level(called[ill], codes, levels)
    return GroupGap(
        name="equal_opportunity",
        rates=rates,
        difference=gap(rates),
        p_value=smallest_after_holm(welch_p_values(called[ill], codes, units[ill])),
        reading="corrected",
    )
