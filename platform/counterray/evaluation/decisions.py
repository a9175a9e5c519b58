"""Calls at a threshold: where to put it, and how often the calls are right."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from counterray.evaluation.intervals import Floats

Truths = NDArray[np.bool_]


def f1_score(positive: Truths, labels: Truths) -> float:
    """``2 TP / (2 TP + FP + FN)``: 1 is best, 0 worst; NaN where there is neither a call nor a positive.

    Args:
        positive: ``[n]``, true where called positive.
        labels: ``[n]``, true for a positive.
    """
    hits = int((positive & labels).sum())
    total = int(positive.sum()) + int(labels.sum())
    return 2 * hits / total if total else math.nan


def f1_threshold(scores: Floats, labels: Truths) -> float:
    """The score from which to call a positive so that F1 on these images is largest.

    Args:
        scores: ``[n]``, higher for more likely.
        labels: ``[n]``, true for a positive.

    Returns:
        One of the scores, the higher of two that do equally well; NaN without a positive.
    """
    if not labels.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order])
    calls = np.arange(1, len(scores) + 1)
    f1 = 2 * hits / (calls + int(labels.sum()))
    # Equal scores are called together: only the last of them is a possible cut.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1
    return float(ranked[int(np.argmax(f1))])


def threshold_scores(positive: Truths, labels: Truths) -> Floats:
    """Accuracy, sensitivity, specificity, PPV, NPV and F1 of calls; NaN where there is nothing to divide by.

    Args:
        positive: ``[n]`` bool, true where called positive.
        labels: ``[n]`` bool, true for a positive.
    """
    hits, misses = int((positive & labels).sum()), int((~positive & labels).sum())
    alarms, clear = int((positive & ~labels).sum()), int((~positive & ~labels).sum())
    shares = [
        (hits + clear, len(labels)),
        (hits, hits + misses),
        (clear, clear + alarms),
        (hits, hits + alarms),
        (clear, clear + misses),
    ]
    return np.array([*(_share(part, whole) for part, whole in shares), f1_score(positive, labels)])


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
