"""What groups of different people show on observed images: counts, performance, associational tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from counterray.audits.cit_lr import CitLr
from counterray.audits.demographic_parity import demographic_parity
from counterray.audits.equal_opportunity import equal_opportunity
from counterray.audits.equalised_odds import equalised_odds
from counterray.audits.errors import MINIMUM_PATIENTS, AuditError
from counterray.audits.group_gaps import GroupGap
from counterray.audits.group_performance import GroupPerformance, group_performance
from counterray.audits.multiplicity import holm
from counterray.audits.scores import CounterfactualScores
from counterray.evaluation.report import Missing


@dataclass(frozen=True, kw_only=True)
class LevelCount:
    """How many of an observed level a number can rest on, for one target.

    Attributes:
        images: All of the level.
        patients: Different ones among them.
        ill: Images known to show the finding.
        healthy: Images known not to show it.
    """

    images: int
    patients: int
    ill: int
    healthy: int

    def as_json(self) -> dict[str, int]:
        """Plain values."""
        return {
            "images": self.images,
            "patients": self.patients,
            "ill": self.ill,
            "healthy": self.healthy,
        }


@dataclass(frozen=True, kw_only=True)
class Association:
    """An associational test of one target.

    Attributes:
        target: Name of the target.
        test: A key of `reporting.wording.TESTS`.
        quantity: What ``value`` is.
        n: Images that it rests on.
        value: The effect that the test is about; NaN where it could not be made.
        p_value: Uncorrected; NaN where it could not be made.
        p_corrected: By Holm over the targets of this test and attribute.
        rates: Group to its rate, where the test compares rates.
        reason: Why it could not be made; empty where it was.
    """

    target: str
    test: str
    quantity: str
    n: int
    value: float = math.nan
    p_value: float = math.nan
    p_corrected: float = math.nan
    rates: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values, with ``None`` for NaN."""
        return {
            "target": self.target,
            "test": self.test,
            "quantity": self.quantity,
            "value": _finite(self.value),
            "p": {"raw": _finite(self.p_value), "corrected": _finite(self.p_corrected)},
            "n": self.n,
            "rates": {name: _finite(rate) for name, rate in self.rates.items()},
            "reason": self.reason,
        }


def level_counts(scores: CounterfactualScores) -> dict[str, dict[str, LevelCount]]:
    """Target's name to level to how many of it there are."""
    names = np.asarray(scores.patients, dtype=str)
    found = {}
    for target, labels in zip(scores.targets, scores.labels, strict=True):
        here = {level: scores.own == position for position, level in enumerate(scores.levels)}
        found[target.name] = {
            level: LevelCount(
                images=int(rows.sum()),
                patients=len(np.unique(names[rows])),
                ill=int((labels[rows] == 1).sum()),
                healthy=int((labels[rows] == 0).sum()),
            )
            for level, rows in here.items()
        }
    return found


def performance_by_group(
    scores: CounterfactualScores,
    *,
    minimum_patients: int = MINIMUM_PATIENTS,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, GroupPerformance | Missing]:
    """Performance of each target on the observed images of each level, or why there is none."""
    found: dict[str, GroupPerformance | Missing] = {}
    for row, target in enumerate(scores.targets):
        try:
            found[target.name] = group_performance(
                scores.observed[row],
                scores.labels[row],
                scores.own,
                attribute=scores.attribute,
                levels=scores.levels,
                patients=scores.patients,
                threshold=target.threshold,
                minimum_patients=minimum_patients,
                resamples=resamples,
                seed=seed,
            )
        except AuditError as error:
            found[target.name] = Missing(str(error))
    return found


def associations(
    scores: CounterfactualScores,
    *,
    cit_lr: CitLr | None = None,
    minimum_patients: int = MINIMUM_PATIENTS,
) -> list[Association]:
    """Associational tests of every target on observed images; one that cannot be made says why.

    Args:
        scores: What classifiers said.
        cit_lr: Its test of the same targets in the same order, where it was made.
        minimum_patients: Patients that each level (of those with the finding) needs.

    Raises:
        AuditError: If ``cit_lr`` is not of as many targets.
    """
    if cit_lr is not None and len(cit_lr.delta) != len(scores.targets):
        raise AuditError(
            f"CIT-LR was made of {len(cit_lr.delta)} targets, the audit of {len(scores.targets)}; give it "
            "the same targets in the same order."
        )
    found = [
        entry
        for row in range(len(scores.targets))
        for entry in (*_gaps(scores, row, minimum_patients), *_cit_lr(scores, row, cit_lr))
    ]
    return _corrected(found)


def _gaps(scores: CounterfactualScores, row: int, minimum_patients: int) -> list[Association]:
    target, labels = scores.targets[row], scores.labels[row]
    called = scores.observed[row] >= target.threshold
    about: dict[str, Any] = {
        "attribute": scores.attribute,
        "levels": scores.levels,
        "patients": scores.patients,
        "minimum_patients": minimum_patients,
    }
    known = int((~np.isnan(labels)).sum())
    tests: list[tuple[str, str, int, Callable[[], GroupGap]]] = [
        (
            "demographic_parity",
            "largest less smallest rate of positive calls",
            len(scores),
            lambda: demographic_parity(called, scores.own, **about),
        ),
        (
            "equal_opportunity",
            "largest less smallest sensitivity",
            int((labels == 1).sum()),
            lambda: equal_opportunity(called, labels, scores.own, **about),
        ),
        (
            "equalised_odds",
            "largest difference of sensitivity or of false alarms",
            known,
            lambda: equalised_odds(called, labels, scores.own, **about),
        ),
    ]
    found = []
    for test, quantity, n, make in tests:
        entry = Association(target=target.name, test=test, quantity=quantity, n=n)
        try:
            made = make()
        except AuditError as error:
            found.append(replace(entry, reason=str(error)))
            continue
        found.append(replace(entry, value=made.difference, p_value=made.p_value, rates=made.rates))
    return found


def _cit_lr(scores: CounterfactualScores, row: int, made: CitLr | None) -> list[Association]:
    if made is None:
        return []
    name = scores.targets[row].name
    flips = math.isfinite(made.effect[row])
    return [
        Association(
            target=name,
            test="cit_lr",
            quantity="δ, plug-in",
            value=float(made.delta[row]),
            p_value=float(made.p_value[row]),
            n=made.rows,
            reason="" if math.isfinite(made.p_value[row]) else "all its differences are equal",
        ),
        Association(
            target=name,
            test="cit_lr_orthogonal",
            quantity="estimated flip rate" if flips else "δ, orthogonalised",
            value=float(made.effect[row] if flips else made.orthogonal_delta[row]),
            p_value=float(made.p_orthogonal[row]),
            n=made.rows,
        ),
    ]


def _corrected(found: Sequence[Association]) -> list[Association]:
    corrected: dict[int, float] = {}
    for test in {entry.test for entry in found}:
        places = [k for k, e in enumerate(found) if e.test == test and math.isfinite(e.p_value)]
        adjusted = holm(np.array([found[k].p_value for k in places], dtype=np.float64))
        corrected |= dict(zip(places, map(float, adjusted), strict=True))
    return [replace(entry, p_corrected=corrected.get(k, math.nan)) for k, entry in enumerate(found)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
