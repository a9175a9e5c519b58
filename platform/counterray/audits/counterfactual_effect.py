"""Does the attribute move the classifier? Effects of interventions, calibrated by null interventions.

For individuals whose images were generated at every level of an attribute, from the same abducted noise:
how much scores and decisions move, which errors that causes, whether it is more than the generator does by
itself, whether it is provably less than a margin, and whether the generator is fit to say any of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from counterray.audits.clustered import (
    ClusteredMeans,
    column_permutation,
    patient_weights,
    resampled_ratios,
    role_permutation,
)
from counterray.audits.effects import Effects, Summary, summaries
from counterray.audits.equivalence import below_margin, equivalence_of_means, rate_below_margin
from counterray.audits.errors import AuditError, Codes
from counterray.audits.expected_counterfactual_accuracy import (
    CounterfactualAccuracy,
    expected_counterfactual_accuracy,
)
from counterray.audits.findings import EffectAudit, Estimate, PairFinding
from counterray.audits.gates import Gate, Reading, gates
from counterray.audits.multiplicity import corrected
from counterray.audits.power import detectable_effect, patients_for_equivalence, patients_to_detect
from counterray.audits.scores import CounterfactualScores
from counterray.audits.settings import AuditConfig
from counterray.audits.verdicts import pair_verdict
from counterray.evaluation.intervals import Floats


def counterfactual_effect(
    scores: CounterfactualScores, config: AuditConfig, *, readings: Sequence[Reading]
) -> EffectAudit:
    """Audits all targets for all pairs of levels of one attribute.

    Args:
        scores: What the classifiers said; their p-values are corrected as one family.
        config: Margins, tests, gates.
        readings: What was measured of the generator, for the gates.

    Returns:
        A verdict for each target and pair. Targets whose scores cannot be used are named with the reason,
        and the others go on.

    Raises:
        AuditError: If the attribute has one level, a level has too few patients, no target can be audited, or
            there are too few null generators for the chosen level.

    Reference: ours; δ as in Ma et al., 2025, https://arxiv.org/abs/2504.19621, Theorem 4.2.
    """
    patients = scores.checked(minimum_patients=config.minimum_patients)
    _check_placebo(scores, config)
    refused = scores.problems()
    if len(refused) == len(scores.targets):
        raise AuditError("No target can be audited. " + " ".join(refused.values()))
    kept = [row for row in range(len(scores.targets)) if row not in refused]
    usable = scores.select(kept)
    effects = Effects.of(usable)
    numbers = summaries(effects, usable, patients, resamples=config.resamples, seed=config.seed)
    return _assembled(
        usable,
        config,
        opened=gates(readings, config.gates),
        effects=effects,
        numbers=numbers,
        dependence=Dependence.of(effects, usable, patients, config),
        tolerance=Tolerance.of(effects, patients, config),
        accuracy=_accuracy(usable, patients),
        refused={scores.targets[row].name: reason for row, reason in refused.items()},
    )


def _check_placebo(scores: CounterfactualScores, config: AuditConfig) -> None:
    if scores.placebo_unit == "individual":
        return
    repeats, needed = scores.placebo.shape[-1], math.ceil(1 / config.alpha) - 1
    if repeats < needed:
        raise AuditError(
            f"placebo_unit = 'generator' with {repeats} null generators: the smallest p-value is "
            f"1 / {repeats + 1}, above alpha = {config.alpha:g}. Train {needed} or more, or audit with null "
            "interventions of the generator itself (placebo_unit = 'individual')."
        )
    if config.test != "permutation":
        raise AuditError(
            f"test = {config.test!r} takes individuals as exchangeable; with placebo_unit = 'generator' only "
            "test = 'permutation' is valid."
        )


@dataclass(frozen=True)
class Dependence:
    """p-values ``[T, Q]`` of "the attribute moves scores no more than a null intervention".

    Attributes:
        permutation: Of roles permuted within patients, on ``mean |τ|``.
        randomised: The same with ties broken at random, see `PermutationTest`.
        bootstrap: Share of patient resamples whose excess of ``|τ|`` is not positive; 1 where nothing moves.
        delta: One-sided t-test of ``E τ² > E τ_placebo²``; δ cannot be negative, so one side is enough.
        decisive: The one that the settings choose.
        corrected: It, corrected over all targets and pairs.
    """

    permutation: Floats
    randomised: Floats
    bootstrap: Floats
    delta: Floats
    decisive: Floats
    corrected: Floats

    @classmethod
    def of(
        cls, effects: Effects, scores: CounterfactualScores, patients: Codes, config: AuditConfig
    ) -> Dependence:
        """All tests, with the same draws for every target and pair."""
        shape = effects.effect.shape[:2]
        family = shape[0] * shape[1]
        # Fewer permutations could never pass Holm's first step over so many tests.
        draws = max(config.permutations, math.ceil(2 * family / config.alpha))
        candidates = effects.candidates()
        if scores.placebo_unit == "generator":
            test = column_permutation(candidates, seed=config.seed)
        else:
            test = role_permutation(candidates, patients, permutations=draws, seed=config.seed)
        bootstrap, delta = np.empty(shape), np.empty(shape)
        for pair, rows in enumerate(effects.concerned):
            codes = np.unique(patients[rows], return_inverse=True)[1]
            delta[:, pair] = ClusteredMeans.of(effects.excess_square[:, pair, rows], codes).p_greater(0.0)
            bootstrap[:, pair] = _bootstrap_p(effects.excess[:, pair, rows], codes, config)
        chosen = {"permutation": test.p_value, "bootstrap": bootstrap, "delta": delta}[config.test]
        return cls(
            permutation=test.p_value,
            randomised=test.p_randomised,
            bootstrap=bootstrap,
            delta=delta,
            decisive=chosen,
            corrected=corrected(chosen.ravel(), config.correction).reshape(shape),
        )


def _bootstrap_p(excess: Floats, patients: Codes, config: AuditConfig) -> Floats:
    weights = patient_weights(int(patients.max()) + 1, resamples=config.resamples, seed=config.seed + 1)
    draws = resampled_ratios(weights, excess, np.ones((1, len(patients))), patients)
    p: Floats = (1 + (draws <= 0).sum(axis=0)) / (len(draws) + 1)
    return p


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


def _accuracy(scores: CounterfactualScores, patients: Codes) -> CounterfactualAccuracy:
    cut = np.array([target.threshold for target in scores.targets])[:, None, None]
    return expected_counterfactual_accuracy(scores.intervened >= cut, own=scores.own, patients=patients)


def _assembled(
    scores: CounterfactualScores,
    config: AuditConfig,
    *,
    opened: Sequence[Gate],
    effects: Effects,
    numbers: Mapping[str, Summary],
    dependence: Dependence,
    tolerance: Tolerance,
    accuracy: CounterfactualAccuracy,
    refused: Mapping[str, str],
) -> EffectAudit:
    closed = [gate for gate in opened if gate.state == "closed"]
    findings = [
        PairFinding(
            target=target,
            first=scores.levels[pair[0]],
            second=scores.levels[pair[1]],
            verdict=pair_verdict(
                closed=closed,
                equivalence_p=float(tolerance.p_value[t, q]),
                corrected_p=float(dependence.corrected[t, q]),
                alpha=config.alpha,
            ),
            numbers={
                name: Estimate(float(s.value[t, q]), float(s.low[t, q]), float(s.high[t, q]))
                for name, s in numbers.items()
            },
            p_value=float(dependence.decisive[t, q]),
            p_corrected=float(dependence.corrected[t, q]),
            p_permutation=float(dependence.permutation[t, q]),
            p_randomised=float(dependence.randomised[t, q]),
            p_bootstrap=float(dependence.bootstrap[t, q]),
            p_delta=float(dependence.delta[t, q]),
            p_equivalence={
                "mean_effect": float(tolerance.mean_effect[t, q]),
                "absolute_effect": float(tolerance.absolute_effect[t, q]),
                "flip_rate": float(tolerance.flip_rate[t, q]),
            },
            detectable_effect=float(tolerance.detectable[t, q]),
            patients_to_detect=float(tolerance.to_detect[t, q]),
            patients_for_equivalence=float(tolerance.for_equivalence[t, q]),
        )
        for t, target in enumerate(scores.targets)
        for q, pair in enumerate(effects.pairs)
    ]
    return EffectAudit(
        attribute=scores.attribute,
        effect=scores.effect,
        levels=tuple(scores.levels),
        individuals=len(scores),
        patients=len(set(scores.patients)),
        null_interventions=scores.placebo.shape[-1],
        placebo_unit=scores.placebo_unit,
        findings=findings,
        accuracy={
            target.name: Estimate(float(accuracy.changed[t]), float(accuracy.low[t]), float(accuracy.high[t]))
            for t, target in enumerate(scores.targets)
        },
        gates=list(opened),
        refused=refused,
        config=config,
    )
