"""How well a classifier does in each group: AUROC, sensitivity, specificity and calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fairlearn.metrics import MetricFrame
from numpy.typing import ArrayLike, NDArray

from counterray.audits.errors import (
    MINIMUM_PATIENTS,
    AuditError,
    Codes,
    checked_groups,
    checked_labels,
    checked_scores,
    encoded_patients,
)
from counterray.evaluation.auroc import auroc
from counterray.evaluation.intervals import Floats, Interval, patient_bootstrap

CALIBRATION_BINS = 10
"""Bins of equal width of the expected calibration error, as Guo et al., 2017, have them (theirs: 15)."""


@dataclass(frozen=True)
class GroupValue:
    """A number of one group with its 95 % patient-bootstrap interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class GroupPerformance:
    """Performance by level.

    Attributes:
        by_level: Level to metric to value: ``auroc``, ``sensitivity``, ``specificity``, ``brier``,
            ``calibration_error``, ``selection_rate``, ``count`` and, among these, ``positives``.
        difference: Metric to largest less smallest value over levels, as fairlearn's MetricFrame has it.
    """

    by_level: Mapping[str, Mapping[str, GroupValue]]
    difference: Mapping[str, float]


def group_performance(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    attribute: str,
    levels: Sequence[str],
    patients: Sequence[str],
    threshold: float,
    minimum_patients: int = MINIMUM_PATIENTS,
    resamples: int = 200,
    seed: int = 0,
) -> GroupPerformance:
    """Performance on the observed images of each level; individuals with unknown label are left out.

    Args:
        scores: ``[N]`` probabilities.
        labels: ``[N]`` 1, 0 or NaN for unknown.
        groups: ``[N]`` position of each individual's level.
        attribute: Name of the attribute.
        levels: Names of its K levels.
        patients: The patient of each individual.
        threshold: Score from which the finding is called.
        minimum_patients: Patients that each level needs.
        resamples: Of patients, for the intervals.
        seed: Of the resamples.

    Raises:
        AuditError: If scores or labels are unusable, the attribute has one level, a level too few patients.
    """
    shape = np.asarray(scores).shape
    values = checked_scores("scores", scores, shape)
    truth = checked_labels("labels", labels, shape)
    units = encoded_patients(patients, size=len(values))
    known = ~np.isnan(truth)
    if not known.any():
        raise AuditError(f"None of {len(values)} labels is known; performance needs some.")
    values, truth, units = values[known], truth[known], units[known]
    codes = checked_groups(
        f"{attribute} among those with a known label",
        np.asarray(groups)[known],
        levels,
        units,
        minimum_patients=minimum_patients,
    )
    return _performance(
        values, truth, codes, units, levels=levels, threshold=threshold, resamples=resamples, seed=seed
    )


def _performance(
    scores: Floats,
    truth: Floats,
    codes: Codes,
    units: Codes,
    *,
    levels: Sequence[str],
    threshold: float,
    resamples: int,
    seed: int,
) -> GroupPerformance:
    """The same of checked arrays ``[N]`` with no unknown label; ``units`` are patients."""
    frame = MetricFrame(
        metrics={name: partial(_quiet, metric, threshold) for name, metric in _METRICS.items()},
        y_true=truth,
        y_pred=scores,
        sensitive_features=np.asarray(levels)[codes],
    )
    found = {}
    for position, level in enumerate(levels):
        here = codes == position
        intervals = _intervals(
            scores[here], truth[here], units[here], threshold=threshold, resamples=resamples, seed=seed
        )
        values = frame.by_group.loc[level]
        found[level] = {
            name: GroupValue(float(values[name]), interval.low, interval.high)
            for name, interval in zip(_METRICS, intervals, strict=True)
        }
    gaps = frame.difference(method="between_groups")
    return GroupPerformance(by_level=found, difference={name: float(gaps[name]) for name in _METRICS})


def calibration_error(truth: Floats, scores: Floats) -> float:
    """``Σ_b n_b / n |mean score_b - rate of positives_b|`` over bins of equal width; 0 is best.

    Reference: Guo et al., 2017, https://arxiv.org/abs/1706.04599, equation 3.
    """
    bins = np.minimum((scores * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=scores - truth, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(scores))


Metric = Callable[[Floats, Floats, NDArray[np.bool_]], float]


def _share(part: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float((part & among).sum() / among.sum()) if among.any() else math.nan


_METRICS: dict[str, Metric] = {
    "auroc": lambda truth, scores, called: auroc(scores, truth == 1),
    "sensitivity": lambda truth, scores, called: _share(called, truth == 1),
    "specificity": lambda truth, scores, called: _share(~called, truth == 0),
    # Brier's score; scikit-learn's checks of its input take most of an audit's time over all resamples.
    "brier": lambda truth, scores, called: float(np.mean((scores - truth) ** 2)),
    "calibration_error": lambda truth, scores, called: calibration_error(truth, scores),
    "selection_rate": lambda truth, scores, called: float(called.mean()),
    "count": lambda truth, scores, called: float(len(truth)),
    "positives": lambda truth, scores, called: float(truth.sum()),
}


def _quiet(metric: Metric, threshold: float, truth: Any, scores: Any) -> float:
    truth, scores = np.asarray(truth), np.asarray(scores)
    return metric(truth, scores, scores >= threshold)


def _intervals(
    scores: Floats,
    truth: Floats,
    units: Codes,
    *,
    threshold: float,
    resamples: int,
    seed: int,
) -> list[Interval]:
    """The interval of each of `_METRICS` over resampled patients; every array is ``[N]`` of one level."""

    def statistic(rows: Codes) -> Floats:
        return np.array(
            [_quiet(metric, threshold, truth[rows], scores[rows]) for metric in _METRICS.values()]
        )

    return patient_bootstrap(statistic, [str(unit) for unit in units], resamples=resamples, seed=seed)
