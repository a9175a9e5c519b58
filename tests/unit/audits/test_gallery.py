"""Whom the flip gallery shows: decisions that change first, of every classifier and finding some."""

import numpy as np

from counterray.audits.reporting.gallery import most_affected
from counterray.audits.scores import Target
from tests.audit_scores import scores_of

SALT = b"a salt of sixteen bytes"


def test_picks_are_spread_over_classifiers_and_findings():
    """Of two classifiers one has three findings, and they change more than the other's two."""
    random = np.random.default_rng(0)
    names = [("a", "edema"), ("a", "mass"), ("a", "nodule"), ("b", "edema"), ("b", "mass")]
    scores = scores_of(
        np.stack([random.uniform(0.5 - width, 0.5 + width, (50, 2)) for width in (0.5, 0.4, 0.3, 0.2, 0.1)]),
        own=np.arange(50) % 2,
        targets=[Target(classifier=classifier, finding=finding) for classifier, finding in names],
    )
    picks = most_affected(scores, count=8, salt=SALT)
    shown = [scores.targets[pick.target] for pick in picks]
    assert [target.classifier for target in shown].count("b") == 4
    assert {(target.classifier, target.finding) for target in shown} == set(names)
    assert max(map([target.finding for target in shown].count, ("edema", "mass", "nodule"))) <= 3
    moved = [np.ptp(scores.intervened[pick.target, pick.individual]) for pick in picks]
    assert moved == sorted(moved, reverse=True)
    assert len({pick.individual for pick in picks}) == 8


def test_decisions_that_change_come_before_larger_changes_of_the_score():
    """Classifier 0 moves by 0.3 and never flips; classifier 1 flips two of four patients by 0.02."""
    intervened = [[[0.1, 0.4]] * 4, [[0.49, 0.51], [0.49, 0.51], [0.3, 0.31], [0.3, 0.32]]]
    scores = scores_of(intervened, own=[0, 0, 0, 0])
    picks = most_affected(scores, count=3, salt=SALT)
    assert [(pick.target, pick.individual in (0, 1)) for pick in picks] == [
        (1, True),
        (1, True),
        (0, False),
    ]
