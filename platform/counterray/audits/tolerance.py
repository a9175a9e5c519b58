"""Is what the attribute does provably within the margins, and how many patients would it take to say?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from counterray.audits.clustered import ClusteredMeans
from counterray.audits.effects import Effects
from counterray.audits.equivalence import below_margin, equivalence_of_means, rate_below_margin, unseen
from counterray.audits.errors import Codes
from counterray.audits.power import detectable_effect, patients_for_equivalence, patients_to_detect
from counterray.audits.scores import PlaceboUnit
from counterray.audits.settings import AuditConfig
from counterray.evaluation.intervals import Floats


@dataclass(frozen=True)
class Tolerance:
    """Equivalence within the margins, and what so many patients can show; each ``[T, Q]``.

    Attributes:
        mean_effect: p of two one-sided tests on the mean effect.
        absolute_effect: p of "the mean ``|effect|``, without the generator's own noise, is at least the
            margin"; see `_absolute`.
        flip_rate: p of the one-sided test on flips: exact where null interventions flip no decision, on the
            excess over theirs where they do.
        detectable: Smallest excess of ``|τ|`` that this audit finds with the chosen power.
        to_detect: Patients to find an excess as large as its margin.
        for_equivalence: Patients to show equivalence in all three, were there no effect.
    """

    mean_effect: Floats
    absolute_effect: Floats
    flip_rate: Floats
    detectable: Floats
    to_detect: Floats
    for_equivalence: Floats

    @classmethod
    def of(
        cls, effects: Effects, patients: Codes, config: AuditConfig, *, placebo_unit: PlaceboUnit
    ) -> Tolerance:
        """Over all individuals.

        Args:
            effects: T targets, Q pairs.
            patients: ``[N]``.
            config: Margins, level, power.
            placebo_unit: Of null generators nothing is subtracted: how much their few errors differ from the
                real one's is not known well enough to speak for a classifier.
        """
        margins, alpha, power = config.margins, config.alpha, config.power
        mean = ClusteredMeans.of(effects.effect, patients)
        excess = ClusteredMeans.of(effects.excess, patients)
        subtract = placebo_unit == "individual"
        flips = ClusteredMeans.of(effects.flip, patients)
        net_flips = ClusteredMeans.of(effects.excess_flip, patients)
        flip_rate = rate_below_margin(flips, margins.flip_rate)
        if subtract:
            noisy = (effects.placebo_flip.max(axis=-1) > 0)[:, None]
            flip_rate = np.where(noisy, below_margin(net_flips, margins.flip_rate), flip_rate)
        root = math.sqrt(mean.patients)
        needed = [
            patients_for_equivalence(part.error * root, margin, alpha=alpha, power=power)
            for part, margin in (
                (mean, margins.mean_effect),
                (excess, margins.absolute_effect),
                (net_flips, margins.flip_rate),
            )
        ]
        return cls(
            mean_effect=equivalence_of_means(mean, margins.mean_effect),
            absolute_effect=_absolute(effects, patients, margins.absolute_effect, subtract=subtract),
            flip_rate=flip_rate,
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


def _absolute(effects: Effects, patients: Codes, margin: float, *, subtract: bool) -> Floats:
    """p-values of "the mean of ``|d|`` is at least the margin", where ``τ = d`` + the generator's noise.

    ``|τ|`` less the placebo's ``|τ|`` would not do: noise adds to an effect in squares, so that a noisy
    generator hides it. Two bounds hold: ``E|d| <= E|τ|``, and ``E|d|² <= E τ² - E τ_placebo²``, the second
    without the noise. Where there is noise either may show that the margin is kept, each at half the level.
    """
    plain = below_margin(ClusteredMeans.of(np.abs(effects.effect), patients), margin)
    if not subtract:
        return plain
    squares = ClusteredMeans.of(effects.excess_square, patients)
    without_noise = np.maximum(squares.p_less(margin**2), unseen(squares.patients, margin))
    noisy = (effects.placebo != 0).any(axis=(-2, -1))[:, None]
    either: Floats = np.minimum(1.0, 2 * np.minimum(plain, without_noise))
    return np.where(noisy, either, plain)
