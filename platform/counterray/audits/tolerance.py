"""Is what the attribute does provably within the margins, and how many patients would it take to say?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from counterray.audits.clustered import ClusteredMeans
from counterray.audits.effects import Effects
from counterray.audits.equivalence import below_margin, equivalence_of_means, rate_below_margin
from counterray.audits.errors import Codes
from counterray.audits.power import detectable_effect, patients_for_equivalence, patients_to_detect
from counterray.audits.settings import AuditConfig
from counterray.evaluation.intervals import Floats


@dataclass(frozen=True)
class Tolerance:
    """Equivalence within the margins, and what so many patients can show; each ``[T, Q]``.

    Attributes:
        mean_effect: p of two one-sided tests on the mean effect.
        absolute_effect: p of the one-sided test on the excess of ``|τ|`` over null interventions.
        flip_rate: p of the one-sided test on flips: exact where null interventions flip no decision, on the
            excess over theirs where they do.
        detectable: Smallest excess of ``|τ|`` that this audit finds with the chosen power.
        to_detect: Patients to find an excess as large as its margin.
        for_equivalence: Patients to show equivalence of mean effect and flip rate, were there no effect.
    """

    mean_effect: Floats
    absolute_effect: Floats
    flip_rate: Floats
    detectable: Floats
    to_detect: Floats
    for_equivalence: Floats

    @classmethod
    def of(cls, effects: Effects, patients: Codes, config: AuditConfig) -> Tolerance:
        """Over all individuals."""
        margins, alpha, power = config.margins, config.alpha, config.power
        mean = ClusteredMeans.of(effects.effect, patients)
        excess = ClusteredMeans.of(effects.excess, patients)
        exact = rate_below_margin(ClusteredMeans.of(effects.flip, patients), margins.flip_rate)
        net = ClusteredMeans.of(effects.excess_flip, patients)
        quiet = ~effects.placebo_flip.any(axis=-1)[:, None]
        root = math.sqrt(mean.patients)
        needed = [
            patients_for_equivalence(part.error * root, margin, alpha=alpha, power=power)
            for part, margin in (
                (mean, margins.mean_effect),
                (excess, margins.absolute_effect),
                (net, margins.flip_rate),
            )
        ]
        return cls(
            mean_effect=equivalence_of_means(mean, margins.mean_effect),
            absolute_effect=below_margin(excess, margins.absolute_effect),
            flip_rate=np.where(quiet, exact, below_margin(net, margins.flip_rate)),
            detectable=detectable_effect(excess.error * root, mean.patients, alpha=alpha, power=power),
            to_detect=patients_to_detect(
                excess.error * root, margins.absolute_effect, alpha=alpha, power=power
            ),
            for_equivalence=np.max(needed, axis=0),
        )

    @property
    def p_value(self) -> Floats:
        """Of all three together: an intersection-union test, so the largest."""
        return np.maximum(np.maximum(self.mean_effect, self.absolute_effect), self.flip_rate)
