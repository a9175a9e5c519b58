"""Is what the attribute does provably within the margins, and how many patients would it take to say?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from counterray.audits.clustered import ClusteredMeans
from counterray.audits.effects import Effects
from counterray.audits.equivalence import below_margin, equivalence_of_means, rate_below_margin
from counterray.audits.errors import Codes
from counterray.audits.multiplicity import strictest_level
from counterray.audits.power import detectable_effect, patients_for_equivalence, patients_to_detect
from counterray.audits.settings import AuditConfig
from counterray.evaluation.intervals import Floats


@dataclass(frozen=True)
class Tolerance:
    """Equivalence within the margins, and what so many patients can show; each ``[T, Q]``.

    A generator's own noise is never subtracted. With ``τ = d`` + noise, ``E|d| <= E|τ|``: what keeps the
    margin with the noise keeps it without. How much of the noise two images of one individual share is not
    known, so that "less what null interventions do" could hide an effect; noise adds to one in squares.

    Attributes:
        mean_effect: p of two one-sided tests on the mean effect.
        absolute_effect: p of "the mean of ``|τ|`` is at least the margin".
        flip_rate: p of "the share of decisions that change is at least the margin", exact.
        detectable: Smallest excess of ``|τ|`` that is significant, after correction, with the chosen power.
        to_detect: Patients of the pair's levels to find an excess as large as its margin so.
        for_equivalence: Patients to show equivalence in all three, were there no effect; infinitely many
            where null interventions alone reach a margin.
    """

    mean_effect: Floats
    absolute_effect: Floats
    flip_rate: Floats
    detectable: Floats
    to_detect: Floats
    for_equivalence: Floats

    @classmethod
    def of(cls, effects: Effects, patients: Codes, config: AuditConfig) -> Tolerance:
        """Over all individuals; what can be detected, over those at the pair's levels, who are tested.

        Args:
            effects: T targets, Q pairs.
            patients: ``[N]``.
            config: Margins, level, power.
        """
        margins, alpha, power = config.margins, config.alpha, config.power
        mean = ClusteredMeans.of(effects.effect, patients)
        absolute = ClusteredMeans.of(np.abs(effects.effect), patients)
        flips = ClusteredMeans.of(effects.flip, patients)
        noise = np.abs(effects.placebo).mean(axis=(-2, -1))[:, None]
        noise_flips = effects.placebo_flip.mean(axis=-1)[:, None]
        root = math.sqrt(mean.patients)
        needed = [
            patients_for_equivalence(part.error * root, left, alpha=alpha, power=power)
            for part, left in (
                (mean, np.full_like(mean.mean, margins.mean_effect)),
                (absolute, margins.absolute_effect - noise),
                (flips, margins.flip_rate - noise_flips),
            )
        ]
        excess = ClusteredMeans.of(effects.excess, patients)
        concerned = np.array([len(np.unique(patients[rows])) for rows in effects.concerned])
        level = strictest_level(alpha, excess.mean.size, config.correction)
        spread = excess.error * root
        return cls(
            mean_effect=equivalence_of_means(mean, margins.mean_effect),
            absolute_effect=below_margin(absolute, margins.absolute_effect),
            flip_rate=rate_below_margin(flips, margins.flip_rate),
            detectable=detectable_effect(spread, concerned, alpha=level, power=power),
            to_detect=patients_to_detect(spread, margins.absolute_effect, alpha=level, power=power),
            for_equivalence=np.max(np.broadcast_arrays(*needed), axis=0),
        )

    @property
    def p_value(self) -> Floats:
        """Of all three together: an intersection-union test, so the largest."""
        return np.maximum(np.maximum(self.mean_effect, self.absolute_effect), self.flip_rate)
