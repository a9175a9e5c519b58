"""Does the attribute move the classifier? Effects of interventions, calibrated by null interventions.

For individuals whose images were generated at every level of an attribute, from the same abducted noise:
how much scores and decisions move, which errors that causes, whether it is more than the generator does by
itself, whether it is provably less than a margin, and whether the generator is fit to say any of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from counterray.audits.dependence import Dependence, check_placebo
from counterray.audits.effects import Effects, Summary, summaries
from counterray.audits.errors import AuditError, Codes
from counterray.audits.expected_counterfactual_accuracy import (
    CounterfactualAccuracy,
    expected_counterfactual_accuracy,
)
from counterray.audits.findings import EffectAudit, Estimate, PairFinding
from counterray.audits.gates import Gate, Reading, gates
from counterray.audits.scores import CounterfactualScores
from counterray.audits.settings import AuditConfig
from counterray.audits.tolerance import Tolerance
from counterray.audits.verdicts import pair_verdict


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
    refused = scores.problems()
    if len(refused) == len(scores.targets):
        raise AuditError("No target can be audited. " + " ".join(refused.values()))
    kept = [row for row in range(len(scores.targets)) if row not in refused]
    usable = scores.select(kept)
    effects = Effects.of(usable)
    family = len(kept) * len(effects.pairs)
    check_placebo(scores.placebo.shape[-1], scores.placebo_unit, config, family=family)
    numbers = summaries(effects, usable, patients, resamples=config.resamples, seed=config.seed)
    return _assembled(
        usable,
        config,
        opened=gates(readings, config.gates),
        effects=effects,
        numbers=numbers,
        dependence=Dependence.of(effects, patients, config, placebo_unit=usable.placebo_unit),
        tolerance=Tolerance.of(effects, patients, config),
        accuracy=_accuracy(usable, patients),
        refused={scores.targets[row].name: reason for row, reason in refused.items()},
    )


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
    size = effects.size(config.margins)
    findings = [
        PairFinding(
            target=target,
            first=scores.levels[pair[0]],
            second=scores.levels[pair[1]],
            verdict=pair_verdict(
                closed=closed,
                equivalence_p=float(tolerance.p_value[t, q]),
                corrected_p=float(dependence.corrected[t, q]),
                size=float(size[t, q]),
                alpha=config.alpha,
            ),
            numbers={
                name: Estimate(float(s.value[t, q]), float(s.low[t, q]), float(s.high[t, q]))
                for name, s in numbers.items()
            },
            p_value=float(dependence.decisive[t, q]),
            p_corrected=float(dependence.corrected[t, q]),
            p_permutation=float(dependence.permutation[t, q]),
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
