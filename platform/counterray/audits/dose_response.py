"""Attributes without levels, such as age: how scores follow the dose of an intervention.

Letters: T = targets, N = individuals, D = doses, R = null interventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from counterray.audits.clustered import (
    ClusteredMeans,
    patient_weights,
    percentiles,
    resampled_ratios,
)
from counterray.audits.dependence import Dependence, check_placebo
from counterray.audits.effects import Effects
from counterray.audits.errors import AuditError, Codes, checked_scores, encoded_patients
from counterray.audits.findings import Estimate
from counterray.audits.gates import Gate, Reading, gates
from counterray.audits.scores import PlaceboUnit, Target
from counterray.audits.settings import AuditConfig
from counterray.audits.tolerance import Tolerance
from counterray.audits.verdicts import Verdict, pair_verdict
from counterray.evaluation.intervals import Floats


@dataclass(frozen=True, kw_only=True)
class DoseScores:
    """Scores of T targets on N individuals under D doses of a continuous attribute.

    Attributes:
        attribute: Its name, such as ``age``.
        unit: Its unit, such as ``years``.
        doses: The D doses, ascending.
        targets: The T targets.
        own: ``[N]`` observed dose of each individual.
        at_own: ``[T, N]`` scores of images generated at the own dose: a null intervention.
        intervened: ``[T, N, D]`` scores at each dose.
        placebo: ``[T, N, R]`` scores of more null interventions.
        patients: The patient of each individual.
        placebo_unit: What the null interventions are.
    """

    attribute: str
    unit: str
    doses: Sequence[float]
    targets: Sequence[Target]
    own: Floats
    at_own: Floats
    intervened: Floats
    placebo: Floats
    patients: Sequence[str]
    placebo_unit: PlaceboUnit = "individual"


@dataclass(frozen=True, kw_only=True)
class DoseFinding:
    """How one target follows the dose.

    Attributes:
        target: Classifier, finding and threshold.
        verdict: See `Verdict`; about the change from the lowest to the highest dose.
        curve: Mean change of the score at each dose from the lowest [probability], a number for each dose.
        slope: Mean over individuals of each one's least-squares slope [probability per unit].
        flip_rate: Share of decisions that differ between the lowest and the highest dose.
        p_value: Of dependence, at each individual's farthest dose against null interventions.
        p_corrected: The same over all targets.
        p_equivalence: The largest of the three tests from the lowest to the highest dose.
    """

    target: Target
    verdict: Verdict
    curve: Sequence[Estimate]
    slope: Estimate
    flip_rate: float
    p_value: float
    p_corrected: float
    p_equivalence: float


@dataclass(frozen=True, kw_only=True)
class DoseAudit:
    """An audit of a continuous attribute: findings, gates, and what it was made of."""

    attribute: str
    unit: str
    doses: tuple[float, ...]
    findings: Sequence[DoseFinding]
    gates: Sequence[Gate]
    config: AuditConfig


def dose_response(scores: DoseScores, config: AuditConfig, *, readings: Sequence[Reading]) -> DoseAudit:
    """Audits all targets for a continuous attribute.

    The curve is the mean of ``s(x^(d)) - s(x^(d_1))``. Whether there is any effect is asked where it is
    largest: each individual's change from the own dose to the dose farthest from it, against null
    interventions at the own dose, which under the null are exchangeable with it. Invariance is claimed over
    the whole range of doses, from the lowest to the highest.

    Args:
        scores: What the classifiers said.
        config: Margins, tests, gates.
        readings: What was measured of the generator.

    Raises:
        AuditError: If there are fewer than two ascending doses, or scores are unusable.
    """
    patients = _checked(scores, config)
    effects = _range_effects(scores)
    dependence = Dependence.of(
        effects, patients, config, placebo_unit=scores.placebo_unit, changes=_farthest(scores)
    )
    tolerance = Tolerance.of(effects, patients, config)
    size = config.margins.size(
        mean=effects.effect.mean(axis=-1),
        absolute=effects.excess.mean(axis=-1),
        flip_rate=effects.excess_flip.mean(axis=-1),
    )
    opened = gates(readings, config.gates)
    closed = [gate for gate in opened if gate.state == "closed"]
    curve = _curve(scores, patients, config)
    slope = _slope(scores, patients)
    flips = effects.flip.mean(axis=-1)
    findings = [
        DoseFinding(
            target=target,
            verdict=pair_verdict(
                closed=closed,
                equivalence_p=float(tolerance.p_value[t, 0]),
                corrected_p=float(dependence.corrected[t, 0]),
                size=float(size[t, 0]),
                alpha=config.alpha,
            ),
            curve=[Estimate(*map(float, point)) for point in curve[:, t].T],
            slope=Estimate(*map(float, slope[:, t])),
            flip_rate=float(flips[t, 0]),
            p_value=float(dependence.decisive[t, 0]),
            p_corrected=float(dependence.corrected[t, 0]),
            p_equivalence=float(tolerance.p_value[t, 0]),
        )
        for t, target in enumerate(scores.targets)
    ]
    return DoseAudit(
        attribute=scores.attribute,
        unit=scores.unit,
        doses=tuple(scores.doses),
        findings=findings,
        gates=opened,
        config=config,
    )


def _checked(scores: DoseScores, config: AuditConfig) -> Codes:
    doses, size = np.asarray(scores.doses, dtype=np.float64), (len(scores.targets), len(scores.patients))
    if len(doses) < 2 or not (np.diff(doses) > 0).all():
        raise AuditError(
            f"Attribute {scores.attribute!r}: doses {list(scores.doses)} must be two or more, ascending; a "
            "response needs something to follow."
        )
    checked_scores("at_own", scores.at_own, size)
    checked_scores("intervened", scores.intervened, (*size, len(doses)))
    checked_scores("placebo", scores.placebo, (*size, scores.placebo.shape[-1]))
    patients = encoded_patients(scores.patients, size=size[1])
    found = int(patients.max()) + 1
    if found < config.minimum_patients:
        raise AuditError(
            f"Attribute {scores.attribute!r}: {found} patients; minimum_patients = {config.minimum_patients} "
            "are needed. Add patients or lower it."
        )
    check_placebo(scores.placebo.shape[-1], scores.placebo_unit, config)
    return patients


def _range_effects(scores: DoseScores) -> Effects:
    """Effects of the one pair (lowest dose, highest dose)."""
    cut = np.array([target.threshold for target in scores.targets])[:, None]
    low, high = scores.intervened[..., 0], scores.intervened[..., -1]
    own = scores.at_own[..., None]
    return Effects(
        pairs=((0, len(scores.doses) - 1),),
        effect=(high - low)[:, None],
        placebo=scores.placebo - own,
        up=((low < cut) & (high >= cut))[:, None],
        down=((low >= cut) & (high < cut))[:, None],
        placebo_flip=((scores.placebo >= cut[..., None]) != (own >= cut[..., None])).mean(axis=-1),
        direction=np.ones((1, len(scores.patients))),
    )


def _farthest(scores: DoseScores) -> Floats:
    """Changes ``[T, 1, N, R + 1]`` for the permutation: to the farthest dose, then the placebos'.

    Those of individuals whose farthest dose is lower than their own count with the opposite sign.
    """
    away = np.asarray(scores.doses)[None] - np.asarray(scores.own)[:, None]
    chosen = np.abs(away).argmax(axis=1)
    direction = np.where(np.take_along_axis(away, chosen[:, None], axis=1) < 0, -1.0, 1.0)  # [N, 1]
    reached = np.take_along_axis(scores.intervened, chosen[None, :, None], axis=2)
    changes = np.concatenate([reached, scores.placebo], axis=-1) - scores.at_own[..., None]
    return (changes * direction)[:, None]


def _curve(scores: DoseScores, patients: Codes, config: AuditConfig) -> Floats:
    """Value, low and high ``[3, T, D]``."""
    change = np.moveaxis(scores.intervened - scores.intervened[..., :1], -1, 1)
    weights = patient_weights(int(patients.max()) + 1, resamples=config.resamples, seed=config.seed)
    draws = resampled_ratios(weights, change, np.ones((1, 1, len(patients))), patients)
    return np.stack([change.mean(axis=-1), *percentiles(draws)])


def _slope(scores: DoseScores, patients: Codes) -> Floats:
    """Value, low and high ``[3, T]`` of the mean slope."""
    centred = np.asarray(scores.doses) - np.mean(scores.doses)
    means = ClusteredMeans.of(scores.intervened @ centred / (centred @ centred), patients)
    return np.stack([means.mean, *means.interval()])
