"""Associational audits: by hand, against SciPy and fairlearn, as shipped and corrected."""

import numpy as np
import pytest
from fairlearn.metrics import (
    demographic_parity_difference,
    equal_opportunity_difference,
    equalized_odds_difference,
)
from scipy.stats import ttest_ind
from sklearn.metrics import roc_auc_score

from counterray.audits.demographic_parity import demographic_parity
from counterray.audits.equal_opportunity import equal_opportunity
from counterray.audits.equalised_odds import equalised_odds
from counterray.audits.errors import AuditError
from counterray.audits.group_performance import calibration_error, group_performance

LEVELS = ("female", "male")


def people(count):
    return [f"p{k:04d}" for k in range(count)]


def table(size=400, levels=2, seed=0):
    random = np.random.default_rng(seed)
    groups = random.integers(0, levels, size)
    labels = (random.random(size) < 0.4).astype(float)
    decisions = random.random(size) < 0.2 + 0.4 * labels + 0.1 * groups
    return decisions, labels, groups


def named(levels=2, **more):
    return {"attribute": "sex", "levels": [f"level {k}" for k in range(levels)], **more}


def test_demographic_parity_by_hand():
    decisions, groups = [1, 1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]
    found = demographic_parity(
        decisions, groups, attribute="sex", levels=LEVELS, patients=people(8), minimum_patients=2
    )
    assert found.rates == {"female": 0.5, "male": 0.25}
    assert found.difference == 0.25
    expected = ttest_ind(decisions[:4], decisions[4:], equal_var=False).pvalue
    assert found.p_value == pytest.approx(expected)


def test_equal_opportunity_by_hand_looks_at_the_ill_alone():
    #            ill, female      ill, male        healthy
    decisions = [1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1]
    labels = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    groups = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1]
    found = equal_opportunity(
        decisions, labels, groups, attribute="sex", levels=LEVELS, patients=people(12), minimum_patients=2
    )
    assert found.rates == {"female": 0.75, "male": 0.25}
    assert found.difference == 0.5
    assert found.p_value == pytest.approx(ttest_ind([1, 1, 1, 0], [1, 0, 0, 0], equal_var=False).pvalue)


@pytest.mark.parametrize("levels", [2, 3])
def test_differences_are_those_of_fairlearn(levels):
    decisions, labels, groups = table(levels=levels)
    more = named(levels, patients=people(len(groups)))
    theirs = {"sensitive_features": groups}
    found = demographic_parity(decisions, groups, **more)
    assert found.difference == pytest.approx(demographic_parity_difference(labels, decisions, **theirs))
    found = equal_opportunity(decisions, labels, groups, **more)
    assert found.difference == pytest.approx(equal_opportunity_difference(labels, decisions, **theirs))
    found = equalised_odds(decisions, labels, groups, **more)
    assert found.difference == pytest.approx(equalized_odds_difference(labels, decisions, **theirs))
    assert set(found.rates) == {f"level {k}, y = {y}" for k in range(levels) for y in (0, 1)}


def test_unknown_labels_are_left_out():
    decisions, labels, groups = table()
    more = named(patients=people(len(groups)))
    before = equal_opportunity(decisions, labels, groups, **more)
    unknown = np.append(labels, np.nan)
    after = equal_opportunity(
        np.append(decisions, True), unknown, np.append(groups, 0), **named(patients=people(len(groups) + 1))
    )
    assert after == before


def test_repeated_images_change_no_p_value():
    decisions, labels, groups = table()
    once = named(patients=people(len(groups)))
    twice = named(patients=people(len(groups)) * 2)
    for audit in (
        lambda k, more: demographic_parity(np.tile(decisions, k), np.tile(groups, k), **more),
        lambda k, more: equal_opportunity(
            np.tile(decisions, k), np.tile(labels, k), np.tile(groups, k), **more
        ),
        lambda k, more: equalised_odds(np.tile(decisions, k), np.tile(labels, k), np.tile(groups, k), **more),
    ):
        assert audit(2, twice).p_value == pytest.approx(audit(1, once).p_value)


def test_constant_decisions_are_at_parity_as_meant_and_nothing_as_shipped():
    groups = np.arange(40) % 2
    more = named(patients=people(40))
    assert demographic_parity(np.ones(40), groups, **more).p_value == 1
    assert np.isnan(demographic_parity(np.ones(40), groups, reading="as_shipped", **more).p_value)
    assert demographic_parity(groups == 1, groups, **more).p_value == 0


def test_as_shipped_rejects_half_of_the_true_nulls_and_welch_does_not():
    rates = {"as_shipped": [], "corrected": []}
    random = np.random.default_rng(0)
    for seed in range(200):
        decisions, groups = random.random(200) < 0.5, random.integers(0, 2, 200)
        for reading, found in rates.items():
            p = demographic_parity(
                decisions, groups, reading=reading, seed=seed, **named(patients=people(200))
            ).p_value
            found.append(p <= 0.05)
    assert np.mean(rates["as_shipped"]) > 0.4
    assert np.mean(rates["corrected"]) < 0.1


def test_equal_opportunity_as_shipped_is_demographic_parity_with_other_draws():
    decisions, labels, groups = table()
    more = named(patients=people(len(groups)))
    shipped = equal_opportunity(decisions, labels, groups, reading="as_shipped", seed=4, **more)
    parity = demographic_parity(decisions, groups, reading="as_shipped", seed=5, **more)
    assert shipped.p_value == parity.p_value
    assert shipped.name == "equal_opportunity"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": ["all"]}, r"has 1 level\(s\) \(all\)"),
        ({"levels": ["a", "a"]}, "name one twice"),
        ({"groups": np.array([0] * 37 + [1] * 3)}, "level 'level 1' has 3 patients; minimum_patients = 10"),
        ({"groups": np.full(40, 2)}, "whole numbers from 0 to 1"),
        ({"groups": np.zeros(3, dtype=int)}, r"have shape \(3,\) for 40 individuals"),
        ({"patients": ["one"] * 40}, "of 1 patient"),
        ({"patients": ["one"]}, "1 patients are named for 40"),
        ({"reading": "as_shipped", "groups": np.arange(40) % 3, "levels": list("abc")}, "exists for 2"),
    ],
)
def test_input_that_cannot_be_audited(changes, message):
    groups = changes.pop("groups", np.arange(40) % 2)
    settings = named(patients=people(40)) | changes
    with pytest.raises(AuditError, match=message):
        demographic_parity(np.arange(40) % 3 == 0, groups, **settings)


def test_too_few_ill_patients_of_a_level_are_named_as_such():
    decisions, _, groups = table(size=60)
    labels = np.zeros(60)
    labels[np.flatnonzero(groups == 0)[:12]] = 1
    labels[np.flatnonzero(groups == 1)[:3]] = 1
    with pytest.raises(
        AuditError, match="'sex among those with the finding': level 'level 1' has 3 patients"
    ):
        equal_opportunity(decisions, labels, groups, **named(patients=people(60)))


# Performance.


def test_calibration_error_by_hand():
    # Bin [0, 0.1): scores 0.05, 0.05 with one positive: |0.1 - 1| / 4; bin [0.9, 1]: 0.95, 1.0 with two.
    truth, scores = np.array([1.0, 0, 1, 1]), np.array([0.05, 0.05, 0.95, 1.0])
    assert calibration_error(truth, scores) == pytest.approx((0.9 + 0.05) / 4)


def test_performance_by_group():
    _, labels, groups = table(size=300)
    scores = np.clip(np.random.default_rng(1).normal(0.4 + 0.2 * labels, 0.15), 0, 1)
    found = group_performance(
        scores, labels, groups, threshold=0.5, resamples=100, **named(patients=people(300))
    )
    for k in (0, 1):
        here = groups == k
        values = found.by_level[f"level {k}"]
        assert values["auroc"].value == pytest.approx(roc_auc_score(labels[here], scores[here]))
        assert values["sensitivity"].value == pytest.approx((scores[here & (labels == 1)] >= 0.5).mean())
        assert values["specificity"].value == pytest.approx((scores[here & (labels == 0)] < 0.5).mean())
        assert values["brier"].value == pytest.approx(((scores - labels)[here] ** 2).mean())
        assert values["count"].value == here.sum()
        assert values["auroc"].low < values["auroc"].value < values["auroc"].high
    gap = abs(found.by_level["level 0"]["auroc"].value - found.by_level["level 1"]["auroc"].value)
    assert found.difference["auroc"] == pytest.approx(gap)


def test_performance_needs_a_known_label():
    with pytest.raises(AuditError, match="None of 40 labels is known"):
        group_performance(
            np.full(40, 0.5),
            np.full(40, np.nan),
            np.arange(40) % 2,
            threshold=0.5,
            **named(patients=people(40)),
        )
