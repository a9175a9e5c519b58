"""What an audit of this size could have seen, and how many patients it would need.

All of it by the normal approximation with Guenther's correction ``+ z² / 2`` for the t-test, which is within
a patient or two of the noncentral t (Guenther, 1981, The American Statistician 35(4), 243-244).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import norm

from counterray.evaluation.intervals import Floats


def detectable_effect(spread: Floats, patients: Any, *, alpha: float, power: float) -> Floats:
    """The smallest mean that a one-sided test finds with the given power.

    ``(z_{1-α} + z_power) spread / √(P - z²_{1-α} / 2)``.

    Args:
        spread: ``[C]`` standard deviation over patients, ``error √P``.
        patients: P, one number or ``[C]``.
        alpha: Rate of false alarms.
        power: Rate of effects found.
    """
    level, reach = norm.ppf(1 - alpha), norm.ppf(power)
    effective = np.asarray(patients - level**2 / 2)
    found = (level + reach) * spread / np.sqrt(np.where(effective > 0, effective, 1.0))
    return np.where(effective > 0, found, math.inf)


def patients_to_detect(spread: Floats, effect: float, *, alpha: float, power: float) -> Floats:
    """Patients ``[C]`` that a one-sided test needs to find a mean of ``effect`` with the given power."""
    level, reach = norm.ppf(1 - alpha), norm.ppf(power)
    return np.asarray(np.ceil(((level + reach) * spread / effect) ** 2 + level**2 / 2))


def patients_for_equivalence(spread: Floats, margin: Floats, *, alpha: float, power: float) -> Floats:
    """Patients ``[C]`` to show equivalence within ``margin [C]`` with the given power if the true mean is 0.

    Infinitely many where there is no margin left. Both one-sided tests have to reject, each with
    ``(1 + power) / 2``; and one patient who moves fully in ``1 / margin`` must have had a chance to be seen:
    ``P >= log α / log(1 - margin)``.

    Reference: Julious, 2004, https://doi.org/10.1002/sim.1783, equation 20.
    """
    level, reach = norm.ppf(1 - alpha), norm.ppf((1 + power) / 2)
    left = np.asarray(margin) > 0
    share = np.where(left, np.minimum(margin, 1 - 1e-12), 0.5)
    needed = ((level + reach) * spread / share) ** 2 + level**2 / 2
    unseen = math.log(alpha) / np.log1p(-share)
    return np.where(left, np.ceil(np.maximum(needed, unseen)), math.inf)
