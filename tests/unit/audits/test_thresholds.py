"""Thresholds on hand-made validation scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterray.audits.classifiers.thresholds import ThresholdConfig, chosen_threshold, given_threshold
from counterray.audits.errors import AuditError

YOUDEN, SENSITIVE = ThresholdConfig(method="youden"), ThresholdConfig(method="sensitivity", sensitivity=0.75)


def test_given_thresholds():
    config = ThresholdConfig(value=0.4, values={"edema": 0.2})
    assert given_threshold(config, "edema") == 0.2
    assert given_threshold(config, "other") == 0.4


def test_youden_by_hand():
    """Cuts .15, .3, .5, .75 have J = 1/3, 2/3, 1/6, 1/2: the best lies between .2 and .4."""
    scores, labels = [0.1, 0.2, 0.6, 0.4, 0.9], [0, 0, 0, 1, 1]
    assert chosen_threshold("x", scores, labels, YOUDEN) == pytest.approx(0.3)


def test_of_equally_good_cuts_the_highest_is_taken():
    """J = 1/2 both between .2 and .4 and between .6 and .8."""
    assert chosen_threshold("x", [0.2, 0.4, 0.6, 0.8], [0, 1, 0, 1], YOUDEN) == pytest.approx(0.7)


def test_target_sensitivity_by_hand():
    scores, labels = [0.2, 0.4, 0.6, 0.8, 0.1], [1, 1, 1, 1, 0]
    assert chosen_threshold("x", scores, labels, SENSITIVE) == pytest.approx(0.3)
    half = ThresholdConfig(method="sensitivity", sensitivity=0.5)
    assert chosen_threshold("x", scores, labels, half) == pytest.approx(0.5)


def test_unknown_labels_are_left_out():
    scores, labels = [0.1, 0.2, 0.6, 0.4, 0.9, 0.99], [0, 0, 0, 1, 1, np.nan]
    assert chosen_threshold("x", scores, labels, YOUDEN) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("scores", "labels", "config", "message"),
    [
        ([0.1, 0.9], [1, 1], YOUDEN, "of 2 validation studies with a known label 2 are positive"),
        ([0.1, 0.9], [np.nan, np.nan], YOUDEN, "of 0 validation studies"),
        ([0.4, 0.4], [0, 1], YOUDEN, "all validation studies score 0.4"),
        ([0.1, 0.9], [1, 0], ThresholdConfig(method="sensitivity", sensitivity=1), "calling all of them"),
        ([np.nan, 0.9], [1, 0], YOUDEN, "no finite numbers"),
    ],
)
def test_what_no_threshold_can_be_chosen_by(scores, labels, config, message):
    with pytest.raises(AuditError, match=f"edema.*{message}"):
        chosen_threshold("edema", scores, labels, config)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=30).filter(
        lambda rows: len({score for score, _ in rows}) > 1 and len({label for _, label in rows}) > 1
    )
)
def test_a_chosen_threshold_divides_and_can_be_used(rows):
    scores, labels = np.array([score for score, _ in rows]), np.array([float(label) for _, label in rows])
    cut = chosen_threshold("x", scores, labels, YOUDEN)
    called = scores >= cut
    assert 0 < cut <= 1
    assert called.any()
    assert not called.all()
