from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score as reference_f1

from counterray.evaluation.decisions import f1_score, f1_threshold, threshold_scores


def test_f1_by_hand() -> None:
    # Two hits, one false alarm, one miss: 4 / (4 + 1 + 1).
    called = np.array([True, True, True, False, False])
    assert f1_score(called, np.array([True, True, False, True, False])) == pytest.approx(4 / 6)
    assert math.isnan(f1_score(np.zeros(2, bool), np.zeros(2, bool)))


def test_threshold_by_hand() -> None:
    # Cuts at 0.9, 0.8, 0.7, 0.2 give F1 2/3, 1/2, 4/5, 2/3.
    scores, labels = np.array([0.2, 0.9, 0.8, 0.7]), np.array([False, True, False, True])
    assert f1_threshold(scores, labels) == 0.7


def test_equal_scores_are_called_together() -> None:
    # Calling one of the two at 0.5 alone would give F1 1.
    assert f1_threshold(np.array([0.5, 0.5, 0.1]), np.array([True, False, False])) == 0.5


def test_threshold_is_the_best_of_all() -> None:
    random = np.random.default_rng(0)
    labels = random.random(200) < 0.2
    scores = np.round(random.random(200) + 0.4 * labels, 2)
    found = reference_f1(labels, scores >= f1_threshold(scores, labels))
    assert found == max(reference_f1(labels, scores >= cut) for cut in np.unique(scores))


def test_no_positive_no_threshold() -> None:
    assert math.isnan(f1_threshold(np.array([0.5, 0.1]), np.array([False, False])))


def test_shares_by_hand() -> None:
    # 3 hits, 1 miss, 2 false alarms, 4 rightly left alone.
    labels = np.array([True] * 4 + [False] * 6)
    positive = np.array([True] * 3 + [False] + [True] * 2 + [False] * 4)
    assert threshold_scores(positive, labels).tolist() == pytest.approx(
        [7 / 10, 3 / 4, 4 / 6, 3 / 5, 4 / 5, 6 / 9]
    )


def test_shares_of_nothing_are_undefined() -> None:
    accuracy, sensitivity, specificity, ppv, npv, f1 = threshold_scores(np.zeros(3, bool), np.zeros(3, bool))
    assert (accuracy, specificity, npv) == (1.0, 1.0, 1.0)
    assert all(math.isnan(value) for value in (sensitivity, ppv, f1))
