"""Attributes without levels, such as age: how scores follow the dose of an intervention.

Letters: T = targets, N = individuals, D = doses, Q = D (D - 1) / 2 pairs of doses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from counterray.audits.clustered import (
    ClusteredMeans,
    patient_weights,
    percentiles,
    resampled_ratios,
)
from counterray.audits.dependence import Dependence, check_placebo
from counterray.audits.dose_scores import DoseScores
from counterray.audits.effects import Effects
from counterray.audits.equivalence import rates_among
from counterray.audits.errors import AuditError, Codes
from counterray.audits.findings import Estimate
from counterray.audits.gates import Gate, Reading, gates
from counterray.audits.scores import Target
from counterray.audits.settings import AuditConfig
from counterray.audits.tolerance import Tolerance
from counterray.audits.verdicts import Verdict, pair_verdict
from counterray.evaluation.intervals import Floats


@dataclass(frozen=True, kw_only=True)
class DosePair:
    """What changes from one dose to a higher one.

    Attributes:
        first: The lower dose.
        second: The higher one.
        mean: Mean change of the score [probability].
        flips: Share of decisions that differ [0 to 1].
        p_equivalence: Of the tests that the change lies within the margins, the largest.
    """

    first: float
    second: float
    mean: Estimate
    flips: Estimate
    p_equivalence: float


@dataclass(frozen=True, kw_only=True)
class DoseFinding:
    """How one target follows the dose.

    Attributes:
        target: Classifier, finding and threshold.
        verdict: See `Verdict`; about the whole range of doses.
        pairs: What changes between any two doses; those from the lowest first, ascending.
        slope: Mean over individuals of each one's least-squares slope [probability per unit].
        p_value: Of dependence: the smallest over doses of an image at the dose against null interventions,
            uncorrected.
        p_corrected: The same, corrected over all targets and doses.
    """

    target: Target
    verdict: Verdict
    pairs: Sequence[DosePair]
    slope: Estimate
    p_value: float
    p_corrected: float

    @property
    def curve(self) -> list[Estimate]:
        """Mean change of the score at each dose from the lowest [probability], a number for each dose."""
        lowest = self.pairs[0].first
        return [Estimate(0.0, 0.0, 0.0), *(pair.mean for pair in self.pairs if pair.first == lowest)]

    @property
    def widest(self) -> DosePair:
        """The pair between which the mean score changes most; its interval is not widened for the choice."""
        return max(self.pairs, key=lambda pair: abs(pair.mean.value))

    @property
    def most_flips(self) -> DosePair:
        """The pair between which most decisions differ; its interval is not widened for the choice."""
        return max(self.pairs, key=lambda pair: pair.flips.value)

    @property
    def p_equivalence(self) -> float:
        """Of "within the margins between any two doses": an intersection-union test, so the largest p."""
        return max(pair.p_equivalence for pair in self.pairs)


@dataclass(frozen=True, kw_only=True)
class DoseAudit:
    """An audit of a continuous attribute: findings, gates, and what it was made of.

    Attributes:
        attribute: Its name.
        unit: Its unit.
        doses: Ascending.
        findings: One for each target that could be audited.
        gates: Of the generator.
        refused: Name of each target that could not be audited to the reason.
        config: How it was tested.
    """

    attribute: str
    unit: str
    doses: tuple[float, ...]
    findings: Sequence[DoseFinding]
    gates: Sequence[Gate]
    refused: Mapping[str, str]
    config: AuditConfig

    def verdicts(self) -> dict[str, Verdict]:
        """Name of each target to its verdict."""
        return {finding.target.name: finding.verdict for finding in self.findings}


def dose_response(scores: DoseScores, config: AuditConfig, *, readings: Sequence[Reading]) -> DoseAudit:
    """Audits all targets for a continuous attribute.

    Dependence is asked at every dose: each individual's change from the own dose to that one, against null
    interventions at the own dose, which under the null are exchangeable with it; corrected over targets and
    doses. Invariance is claimed over the whole range, so the change between any two doses has to lie within
    the margins: a response that returns to where it began is not invariant. Over pairs this is an
    intersection-union test: the largest p counts, and no correction is needed. Of what lies between doses
    nothing is known.

    Args:
        scores: What the classifiers said.
        config: Margins, tests, gates.
        readings: What was measured of the generator.

    Returns:
        A finding for each target. Targets whose scores cannot be used are named with the reason, and the
        others go on.

    Raises:
        AuditError: If there are fewer than two ascending doses, too few patients or null generators, or no
            target can be audited.

    Reference: intersection-union tests in Berger, 1982, Technometrics 24(4), 295-300.
    """
    patients = scores.checked(minimum_patients=config.minimum_patients)
    refused = scores.problems()
    if len(refused) == len(scores.targets):
        raise AuditError("No target can be audited. " + " ".join(refused.values()))
    usable = scores.select([row for row in range(len(scores.targets)) if row not in refused])
    unit, family = usable.placebo_unit, len(usable.targets) * len(usable.doses)
    check_placebo(usable.placebo.shape[-1], unit, config, family=family)
    between = _between_doses(usable)
    dependence = Dependence.of(_from_own(usable), patients, config, placebo_unit=unit)
    equivalence = Tolerance.of(between, patients, config).p_value  # [T, Q]
    size = between.size(config.margins)
    opened = gates(readings, config.gates)
    closed = [gate for gate in opened if gate.state == "closed"]
    pairs = _pairs(usable, between, equivalence, patients, config)
    slope = _slope(usable, patients)
    corrected = dependence.corrected.min(axis=1)
    findings = [
        DoseFinding(
            target=target,
            verdict=pair_verdict(
                closed=closed,
                equivalence_p=float(equivalence[t].max()),
                corrected_p=float(corrected[t]),
                size=float(size[t].max()),
                alpha=config.alpha,
            ),
            pairs=pairs[t],
            slope=Estimate(*map(float, slope[:, t])),
            p_value=float(dependence.decisive[t].min()),
            p_corrected=float(corrected[t]),
        )
        for t, target in enumerate(usable.targets)
    ]
    return DoseAudit(
        attribute=scores.attribute,
        unit=scores.unit,
        doses=tuple(scores.doses),
        findings=findings,
        gates=opened,
        refused={scores.targets[row].name: reason for row, reason in refused.items()},
        config=config,
    )


def _between_doses(scores: DoseScores) -> Effects:
    """Effects of the Q pairs of doses, from the lower to the higher, on everyone."""
    pairs = tuple(combinations(range(len(scores.doses)), 2))
    low, high = (np.moveaxis(scores.intervened[..., [pair[k] for pair in pairs]], -1, 1) for k in (0, 1))
    return _effects(scores, pairs, low, high, np.ones((len(pairs), len(scores))))


def _from_own(scores: DoseScores) -> Effects:
    """Effects ``[T, D, N]`` between the own dose and each of the doses, from the lower of the two.

    Pairs are named by dose alone: position -1 stands for the own.
    """
    doses = np.asarray(scores.doses)
    direction = np.where(doses[:, None] < np.asarray(scores.own), -1.0, 1.0)  # [D, N]
    reached = np.moveaxis(scores.intervened, -1, 1)
    own = np.broadcast_to(scores.at_own[:, None], reached.shape)
    low, high = np.where(direction > 0, own, reached), np.where(direction > 0, reached, own)
    return _effects(scores, tuple((-1, d) for d in range(len(doses))), low, high, direction)


def _effects(
    scores: DoseScores, pairs: tuple[tuple[int, int], ...], low: Floats, high: Floats, direction: Floats
) -> Effects:
    """Effects of scores ``[T, Q, N]`` at the lower and the higher of two doses."""
    cut = np.array([target.threshold for target in scores.targets])[:, None, None]
    own = scores.at_own[..., None]
    called, called_later = low >= cut, high >= cut
    return Effects(
        pairs=pairs,
        effect=high - low,
        placebo=scores.placebo - own,
        up=~called & called_later,
        down=called & ~called_later,
        placebo_flip=((scores.placebo >= cut) != (own >= cut)).mean(axis=-1),
        direction=direction,
    )


def _pairs(
    scores: DoseScores, between: Effects, equivalence: Floats, patients: Codes, config: AuditConfig
) -> list[list[DosePair]]:
    """Every target's pairs of doses."""
    weights = patient_weights(int(patients.max()) + 1, resamples=config.resamples, seed=config.seed)
    draws = resampled_ratios(weights, between.effect, np.ones((1, 1, len(scores))), patients)
    mean = np.stack([between.effect.mean(axis=-1), *percentiles(draws)])  # [3, T, Q]
    everyone = np.ones((len(scores.targets), len(scores)), dtype=np.bool_)
    flips = np.stack(rates_among(between.up | between.down, everyone, patients))
    return [
        [
            DosePair(
                first=float(scores.doses[low]),
                second=float(scores.doses[high]),
                mean=Estimate(*map(float, mean[:, t, q])),
                flips=Estimate(*map(float, flips[:, t, q])),
                p_equivalence=float(equivalence[t, q]),
            )
            for q, (low, high) in enumerate(between.pairs)
        ]
        for t in range(len(scores.targets))
    ]


def _slope(scores: DoseScores, patients: Codes) -> Floats:
    """Value, low and high ``[3, T]`` of the mean slope."""
    centred = np.asarray(scores.doses) - np.mean(scores.doses)
    means = ClusteredMeans.of(scores.intervened @ centred / (centred @ centred), patients)
    return np.stack([means.mean, *means.interval()])
