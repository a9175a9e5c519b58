"""Counterfactual effects: four individuals by hand, verdicts, gates, and input that cannot be audited."""

import json
import math

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame
from scipy.stats import beta
from sklearn.metrics import accuracy_score

from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.effects import Effects, lower_median
from counterray.audits.errors import AuditError
from counterray.audits.expected_counterfactual_accuracy import expected_counterfactual_accuracy
from counterray.audits.gates import Reading, gates
from counterray.audits.scores import Target
from counterray.audits.settings import AuditConfig, GateConfig
from counterray.audits.verdicts import overall_verdict, pair_verdict
from tests.audit_scores import WAIVED, config, noisy_scores, scores_of

# Four patients, two at each level; scores at level 0 and level 1, threshold 0.5:
#   p0 (level 0, ill):     0.6 -> 0.4   falls below: disease missed at level 1
#   p1 (level 0, healthy): 0.4 -> 0.7   rises: false alarm at level 1
#   p2 (level 1, ill):     0.2 -> 0.2
#   p3 (level 1, healthy): 0.9 -> 0.8
HAND = scores_of(
    [[[0.6, 0.4], [0.4, 0.7], [0.2, 0.2], [0.9, 0.8]]],
    own=[0, 0, 1, 1],
    labels=[[1, 0, 1, 0]],
    placebo=[[[0.65], [0.4], [0.2], [0.8]]],
    levels=["female", "male"],
)


def audit_of(scores, **settings):
    return counterfactual_effect(scores, config(minimum_patients=2, **settings), readings=[])


def numbers(name):
    return audit_of(HAND).findings[0].numbers[name].value


def test_effects_by_hand():
    assert numbers("mean") == pytest.approx((-0.2 + 0.3 + 0 - 0.1) / 4)
    assert numbers("absolute") == pytest.approx(0.15)
    assert numbers("mean_square") == pytest.approx((0.04 + 0.09 + 0 + 0.01) / 4)
    assert numbers("median") == pytest.approx(-0.1)  # the lower of -0.1 and 0
    assert numbers("placebo") == pytest.approx(0.05 / 4)
    assert numbers("excess") == pytest.approx(0.15 - 0.05 / 4)
    assert numbers("excess_square") == pytest.approx(0.035 - 0.0025 / 4)


def test_flips_have_a_direction_and_cause_an_error():
    assert numbers("flip") == 0.5
    assert numbers("up") == numbers("down") == 0.25
    assert numbers("missed_at_second") == 0.5  # of two ill ones
    assert numbers("missed_at_first") == 0
    assert numbers("alarm_at_second") == 0.5  # of two healthy ones
    assert numbers("alarm_at_first") == 0


@pytest.mark.parametrize("name", ["missed_at_first", "alarm_at_second", "up", "down", "up@male"])
def test_a_rate_that_was_never_seen_has_no_interval_of_nothing(name):
    still = scores_of(
        np.full((1, 60, 2), 0.4) + np.linspace(0, 0.05, 60)[None, :, None],
        own=np.arange(60) % 2,
        labels=(np.arange(60) % 3 == 0)[None].astype(float),
        levels=["female", "male"],
    )
    number = counterfactual_effect(still, config(), readings=[]).findings[0].numbers[name]
    size = {"missed_at_first": 20, "alarm_at_second": 40, "up@male": 30}.get(name, 60)
    assert (number.value, number.low) == (0, 0)
    assert number.high == pytest.approx(1 - 0.025 ** (1 / size))  # Clopper and Pearson


def test_flips_and_errors_by_observed_level():
    assert (numbers("flip@female"), numbers("flip@male")) == (1.0, 0.0)
    assert numbers("missed_at_second@female") == 1.0
    assert numbers("alarm_at_second@female") == 1.0
    assert numbers("missed_at_second@male") == 0.0


def test_an_error_without_anybody_to_make_it_on_has_no_number():
    scores = scores_of([[[0.6, 0.4], [0.4, 0.7], [0.2, 0.2], [0.9, 0.8]]], own=[0, 0, 1, 1])
    finding = audit_of(scores).findings[0]
    assert math.isnan(finding.numbers["missed_at_second"].value)
    assert finding.as_json()["numbers"]["missed_at_second"] == {"value": None, "low": None, "high": None}


def test_null_interventions_start_from_the_image_at_the_own_level():
    effects = Effects.of(HAND)
    assert effects.placebo[0, :, 0] == pytest.approx([0.05, 0, 0, 0])
    assert effects.placebo_flip.tolist() == [[0, 0, 0, 0]]
    # Signs are those of the direction from female to male: p0 and p1 go with it, p2 and p3 against it.
    expected = np.array([[-0.2, 0.05], [0.3, 0], [0, 0], [-0.1, 0]])
    assert effects.changes()[0, 0] == pytest.approx(expected)


def test_tests_rest_on_those_observed_at_a_level_of_the_pair():
    scores = noisy_scores(levels=3, size=90)
    effects = Effects.of(scores)
    assert effects.pairs == ((0, 1), (0, 2), (1, 2))
    third = scores.own == 2
    assert (effects.changes()[:, 0, third] == 0).all()
    assert (effects.changes()[:, 0, ~third] != 0).all()


def test_accuracy_by_hand_and_as_printed():
    decisions = np.array([[[True, False, True], [True, True, True]]])
    found = expected_counterfactual_accuracy(decisions, own=np.array([0, 2]), patients=np.arange(2))
    assert found.changed == pytest.approx([0.75])
    assert found.paper == pytest.approx([1 / 3 + 2 / 3 * 0.75])


def test_a_model_that_flips_on_every_change_scores_a_third_as_printed_and_nothing_as_meant():
    own = np.array([0, 1, 2, 0])
    decisions = (np.arange(3)[None] == own[:, None])[None]
    found = expected_counterfactual_accuracy(decisions, own=own, patients=np.arange(4))
    assert found.changed == 0
    assert found.paper == pytest.approx([1 / 3])


def test_accuracy_is_one_less_flips_where_there_are_two_levels():
    scores = noisy_scores(size=100, noise=0.1)
    audit = audit_of(scores)
    assert audit.accuracy["c0, edema"].value == pytest.approx(1 - audit.findings[0].numbers["flip"].value)


def test_accuracy_is_that_of_scikit_learn_and_of_fairlearn_by_level():
    scores = noisy_scores(size=100, noise=0.1)
    decisions = scores.intervened >= 0.5
    kept = np.take_along_axis(decisions[0], scores.own[:, None], axis=1)[:, 0]
    changed = np.take_along_axis(decisions[0], 1 - scores.own[:, None], axis=1)[:, 0]
    found = expected_counterfactual_accuracy(decisions, own=scores.own, patients=np.arange(100))
    assert found.changed == pytest.approx([accuracy_score(kept, changed)])
    frame = MetricFrame(metrics=accuracy_score, y_true=kept, y_pred=changed, sensitive_features=scores.own)
    flips = audit_of(scores).findings[0].numbers
    for level in (0, 1):
        assert flips[f"flip@level {level}"].value == pytest.approx(1 - frame.by_group[level])


def test_the_interval_of_accuracy_by_hand():
    # Two of ten patients flip: 0.8, n* = 9, and the exact interval of it.
    decisions = np.zeros((1, 10, 2), dtype=bool)
    decisions[0, :2, 1] = True
    found = expected_counterfactual_accuracy(decisions, own=np.zeros(10, dtype=int), patients=np.arange(10))
    assert found.changed == pytest.approx([0.8])
    assert found.low == pytest.approx([beta.ppf(0.025, 7.2, 2.8)])
    assert found.high == pytest.approx([beta.ppf(0.975, 8.2, 1.8)])


def test_p_values_of_the_bootstrap_by_hand():
    # Every excess is positive, so that no resample's mean is 0 or less; and where nothing moves all are 0.
    base = np.random.default_rng(0).uniform(0.1, 0.8, 40)
    own = np.arange(40) % 2
    moved = audit_of(scores_of(np.stack([base, base + 0.1], axis=-1)[None], own=own)).findings[0]
    still = audit_of(scores_of(np.stack([base, base], axis=-1)[None], own=own)).findings[0]
    assert moved.p_bootstrap == pytest.approx(1 / 201)
    assert still.p_bootstrap == 1


def test_the_lower_median_is_a_value_that_was_seen():
    assert lower_median(np.array([4.0, 1.0, 3.0, 2.0])) == 2.0


# Verdicts.


def test_a_classifier_that_nothing_moves_is_invariant_with_enough_patients():
    base = np.random.default_rng(0).random(200)
    still = scores_of(np.repeat(base[None, :, None], 2, axis=2), own=np.arange(200) % 2)
    [finding] = audit_of(still).findings
    assert finding.verdict == "invariant"
    assert finding.p_value == finding.p_corrected == 1
    assert finding.numbers["flip"].high == pytest.approx(1 - 0.025 ** (1 / 200))


def test_few_patients_are_inconclusive_however_still_the_classifier_is():
    base = np.random.default_rng(0).random(20)
    still = scores_of(np.repeat(base[None, :, None], 2, axis=2), own=np.arange(20) % 2)
    audit = audit_of(still)
    assert audit.verdicts() == {"c0, edema": "inconclusive"}
    assert audit.findings[0].patients_for_equivalence == 59
    assert "Showing invariance takes about 59" in audit.sentence(audit.findings[0])


def test_a_shift_beyond_the_generators_noise_is_a_dependence():
    audit = audit_of(noisy_scores(size=300, shift=0.1, noise=0.03))
    assert audit.verdicts() == {"c0, edema": "depends"}
    assert audit.sentence(audit.findings[0]).startswith(
        "Depends on sex: changing sex from level 0 to level 1"
    )


def test_effects_that_cancel_in_the_mean_are_no_invariance():
    random = np.random.default_rng(0)
    base = random.uniform(0.3, 0.7, 400)
    sign = random.choice([-1, 1], 400)
    scores = scores_of(np.stack([base, base + 0.2 * sign], axis=-1)[None], own=np.arange(400) % 2)
    [finding] = audit_of(scores).findings
    assert finding.p_equivalence["mean_effect"] < 0.05
    assert finding.p_equivalence["absolute_effect"] > 0.9
    assert finding.verdict == "depends"


def test_an_effect_that_is_certain_and_within_the_margin_is_invariant():
    base = np.random.default_rng(0).uniform(0.3, 0.45, 300)
    scores = scores_of(np.stack([base, base + 0.01], axis=-1)[None], own=np.arange(300) % 2)
    [finding] = audit_of(scores).findings
    assert finding.p_corrected < 0.01
    assert finding.verdict == "invariant"


@pytest.mark.parametrize(
    ("equivalence", "dependence", "size", "verdict"),
    [
        (0.01, 0.001, 0.9, "invariant"),
        (0.01, 0.9, 0.0, "invariant"),
        (0.2, 0.01, 1.0, "depends"),
        (0.2, 0.01, 0.9, "inconclusive"),
        (0.2, 0.9, 1.1, "inconclusive"),
    ],
)
def test_verdicts(equivalence, dependence, size, verdict):
    found = pair_verdict(closed=[], equivalence_p=equivalence, corrected_p=dependence, size=size, alpha=0.05)
    assert found == verdict


def test_one_dependence_is_enough_and_invariance_has_to_hold_for_all_pairs():
    assert overall_verdict(["invariant", "depends", "inconclusive"]) == "depends"
    assert overall_verdict(["invariant", "inconclusive"]) == "inconclusive"
    assert overall_verdict(["invariant", "invariant"]) == "invariant"
    assert overall_verdict(["cannot_tell", "cannot_tell"]) == "cannot_tell"


# Gates.


GOOD = {"effectiveness": 0.95, "composition": 0.01, "off_target": 0.01, "identity": 0.9, "judge_auroc": 0.9}


def readings(**changes):
    return [Reading(gate=name, value=value, judge="judge-a") for name, value in (GOOD | changes).items()]


def test_all_gates_open():
    assert [gate.state for gate in gates(readings(), GateConfig())] == ["open"] * 5


@pytest.mark.parametrize(
    ("gate", "value", "words"),
    [
        ("effectiveness", 0.5, "0.5 is below gates.effectiveness = 0.8"),
        ("composition", 0.2, "0.2 is above gates.composition = 0.05"),
        ("off_target", 0.2, "changes findings or attributes that should stay"),
        ("identity", 0.1, "another patient's image"),
        ("judge_auroc", 0.6, "the judge of the attribute is weak"),
        ("effectiveness", math.nan, "it was not measured"),
    ],
)
def test_a_closed_gate_is_no_verdict_but_cannot_tell(gate, value, words):
    scores = noisy_scores(size=300, shift=0.2, noise=0.01)
    audit = counterfactual_effect(scores, AuditConfig(resamples=200), readings=readings(**{gate: value}))
    assert audit.verdicts() == {"c0, edema": "cannot_tell"}
    sentence = audit.sentence(audit.findings[0])
    assert words in sentence
    assert f"Gate {gate} is closed" in sentence
    assert "To open it, " in sentence


def test_a_gate_that_was_not_measured_is_closed_unless_it_is_waived():
    some = [reading for reading in readings() if reading.gate != "identity"]
    closed = {gate.name: gate for gate in gates(some, GateConfig())}["identity"]
    assert (closed.state, closed.reason) == ("closed", "it was not measured")
    assert "gates.waived.identity" in closed.remedy
    waived = gates(some, GateConfig(waived={"identity": "the renderer keeps the patient"}))
    assert {gate.name: gate.state for gate in waived}["identity"] == "waived"


def test_gates_that_do_not_exist_or_are_read_twice_are_refused():
    with pytest.raises(AuditError, match="'identty', which is no gate; gates: effectiveness, composition"):
        gates(readings(), GateConfig(waived={"identty": "?"}))
    with pytest.raises(AuditError, match="identity was measured twice"):
        gates([*readings(), Reading(gate="identity", value=1)], GateConfig())


# What cannot be audited.


def test_an_attribute_with_one_level():
    scores = scores_of(np.full((1, 30, 1), 0.5), own=np.zeros(30, dtype=int), levels=["female"])
    with pytest.raises(AuditError, match=r"Attribute 'sex' has 1 level\(s\) \(female\).*Choose another"):
        audit_of(scores)


def test_a_group_of_three_patients():
    own = np.array([0] * 60 + [1] * 3)
    scores = scores_of(np.random.default_rng(0).random((1, 63, 2)), own=own)
    with pytest.raises(
        AuditError, match=r"level 'level 1' has 3 patients; minimum_patients = 10 are needed\. Add patients"
    ):
        counterfactual_effect(scores, config(), readings=[])


def test_twelve_images_of_three_patients_are_three_patients():
    own = np.array([0] * 60 + [1] * 12)
    patients = [*(f"a{k}" for k in range(60)), *(f"b{k % 3}" for k in range(12))]
    scores = scores_of(np.random.default_rng(0).random((1, 72, 2)), own=own, patients=patients)
    with pytest.raises(AuditError, match="'level 1' has 3 patients"):
        counterfactual_effect(scores, config(), readings=[])


def bad_and_good(change):
    scores = noisy_scores(targets=2, size=100)
    intervened, observed, placebo = (
        part.copy() for part in (scores.intervened, scores.observed, scores.placebo)
    )
    change(observed[0], intervened[0], placebo[0])
    return scores_of(intervened, own=scores.own, labels=scores.labels, placebo=placebo, observed=observed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, i, p: i.__setitem__((3, 1), np.nan), r"intervened scores: 1 of 200 scores are no finite"),
        (lambda o, i, p: p.__setitem__((3, 0), np.inf), r"placebo scores: 1 of 100 scores are no finite"),
        (lambda o, i, p: o.__setitem__(0, 3.5), r"outside 0 to 1, such as 3.5 at position 0.*sigmoid"),
        (
            lambda o, i, p: (o.fill(0.5), i.fill(0.5), p.fill(0.5)),
            r"the score is 0.5 for all 100 individuals at all levels; two different scores are needed",
        ),
    ],
)
def test_a_target_that_cannot_be_audited_is_named_and_the_others_go_on(change, message):
    scores = bad_and_good(change)
    audit = audit_of(scores)
    assert list(audit.refused) == ["c0, edema"]
    import re

    assert re.search(message, audit.refused["c0, edema"])
    assert list(audit.verdicts()) == ["c1, edema"]


def test_nothing_left_to_audit_is_an_error_with_every_reason():
    scores = scores_of(np.full((1, 30, 2), np.nan), own=np.arange(30) % 2)
    with pytest.raises(AuditError, match=r"No target can be audited\. c0, edema: observed scores: 30 of 30"):
        audit_of(scores)


def test_a_threshold_that_calls_everybody():
    scores = noisy_scores(targets=1)
    bad = scores_of(
        scores.intervened,
        own=scores.own,
        targets=[Target(classifier="c", finding="edema", threshold=1.0)],
    )
    with pytest.raises(AuditError, match="threshold = 1 calls all or nothing"):
        audit_of(bad)


def test_shapes_that_do_not_fit():
    with pytest.raises(AuditError, match=r"labels has shape \(1, 3\); \(1, 4\) is needed"):
        scores_of(np.full((1, 4, 2), 0.5), own=[0, 1, 0, 1], labels=np.zeros((1, 3)))
    with pytest.raises(AuditError, match="no null intervention"):
        scores_of(np.full((1, 4, 2), 0.5), own=[0, 1, 0, 1], placebo=np.zeros((1, 4, 0)))


def test_too_few_null_generators_for_the_level():
    scores = noisy_scores(repeats=5)
    from dataclasses import replace

    with pytest.raises(AuditError, match=r"5 null generators: the smallest p-value is 1 / 6, which"):
        audit_of(replace(scores, placebo_unit="generator"))
    many = replace(noisy_scores(repeats=19), placebo_unit="generator")
    with pytest.raises(AuditError, match="only test = 'permutation' is valid"):
        audit_of(many, test="delta")
    assert 0.05 <= audit_of(many).findings[0].p_value <= 1


# What comes out.


def test_p_values_are_corrected_over_targets_and_pairs():
    scores = noisy_scores(targets=3, levels=3, size=240, shift=0.02)
    audit = audit_of(scores)
    raw = np.array([finding.p_value for finding in audit.findings])
    corrected = np.array([finding.p_corrected for finding in audit.findings])
    assert len(raw) == 9
    assert min(corrected) == pytest.approx(min(1, 9 * min(raw)))


def test_permutations_are_enough_for_holms_first_step():
    scores = noisy_scores(targets=40, size=120, shift=0.2, noise=0.01)
    audit = audit_of(scores, permutations=199)
    assert set(audit.verdicts().values()) == {"depends"}


@pytest.mark.parametrize("test", ["permutation", "bootstrap", "delta"])
def test_each_test_can_decide(test):
    finding = audit_of(noisy_scores(size=200, shift=0.1), test=test).findings[0]
    assert (
        finding.p_value
        == {
            "permutation": finding.p_permutation,
            "bootstrap": finding.p_bootstrap,
            "delta": finding.p_delta,
        }[test]
    )
    assert finding.p_value < 0.01


def test_everything_is_plain_json():
    audit = audit_of(noisy_scores(targets=2, levels=3, size=120))
    again = json.loads(json.dumps(audit.as_json(), allow_nan=False))
    assert again["verdicts"] == audit.verdicts()
    assert len(again["findings"]) == 6
    assert again["findings"][0]["numbers"]["flip"]["value"] == audit.findings[0].numbers["flip"].value
    assert again["config"]["margins"]["mean_effect"] == 0.05
    assert {gate["state"] for gate in again["gates"]} == {"waived"}
    assert set(WAIVED) == {gate["name"] for gate in again["gates"]}
