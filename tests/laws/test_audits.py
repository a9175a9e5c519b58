"""What must hold of every counterfactual audit: relabelling, duplication, calibration, power, equivalence.

Calibrations of 400 replicates and more are experiments; `make experiments` runs them.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterray.audits.counterfactual_effect import counterfactual_effect
from jobs.reproduction.cit_lr.calibration import replicate
from jobs.reproduction.cit_lr.experiment import Calibration
from tests.audit_scores import config, noisy_scores, scores_of

SHARE = ("mean", "median", "absolute", "mean_square", "excess", "flip", "up", "down", "excess_flip")


def audit_of(scores, **more):
    return counterfactual_effect(scores, config(permutations=199, **more), readings=[])


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(3)),
    shift=st.sampled_from([0.0, 0.01, 0.05]),
    seed=st.integers(0, 1000),
)
def test_relabelling_levels_changes_no_verdict(order, shift, seed):
    scores = noisy_scores(targets=2, levels=3, size=150, shift=shift, seed=seed)
    place = np.argsort(order)
    renamed = replace(
        scores,
        levels=[scores.levels[k] for k in order],
        intervened=scores.intervened[..., list(order)],
        own=place[scores.own],
    )
    before, after = audit_of(scores), audit_of(renamed)
    assert after.verdicts() == before.verdicts()

    def by_pair(audit):
        return {
            (finding.target.name, frozenset((finding.first, finding.second))): finding
            for finding in audit.findings
        }

    for key, finding in by_pair(before).items():
        other = by_pair(after)[key]
        assert other.verdict == finding.verdict
        assert other.p_value == pytest.approx(finding.p_value)
        assert other.p_delta == pytest.approx(finding.p_delta)
        assert other.p_equivalence == pytest.approx(finding.p_equivalence)
        assert other.numbers["flip"] == finding.numbers["flip"]
        sign = 1 if (other.first, other.second) == (finding.first, finding.second) else -1
        assert other.numbers["mean"].value == pytest.approx(sign * finding.numbers["mean"].value)


@settings(max_examples=15, deadline=None)
@given(times=st.integers(2, 4), images=st.integers(1, 3), seed=st.integers(0, 1000))
def test_duplicating_every_patients_images_changes_no_interval_and_no_p_value(times, images, seed):
    scores = noisy_scores(size=120, images=images, shift=0.02, seed=seed)
    rows = np.tile(np.arange(len(scores)), times)
    more = replace(
        scores,
        observed=scores.observed[:, rows],
        intervened=scores.intervened[:, rows],
        placebo=scores.placebo[:, rows],
        labels=scores.labels[:, rows],
        own=scores.own[rows],
        patients=[scores.patients[row] for row in rows],
    )
    [once], [again] = audit_of(scores).findings, audit_of(more).findings
    for name in SHARE:
        before, after = once.numbers[name], again.numbers[name]
        if name == "median":  # the lower median of an even number of values may be the next one
            assert after.high - after.low == pytest.approx(before.high - before.low, abs=0.02)
            continue
        assert (after.value, after.low, after.high) == pytest.approx((before.value, before.low, before.high))
    assert again.p_value == pytest.approx(once.p_value)
    assert again.p_bootstrap == pytest.approx(once.p_bootstrap)
    assert again.p_equivalence == pytest.approx(once.p_equivalence)
    assert again.verdict == once.verdict


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_individuals_and_targets_does_not_matter_to_effects(seed):
    scores = noisy_scores(targets=2, size=90, seed=seed)
    order = np.random.default_rng(seed).permutation(90)
    mixed = replace(
        scores,
        targets=list(scores.targets)[::-1],
        observed=scores.observed[::-1, order],
        intervened=scores.intervened[::-1, order],
        placebo=scores.placebo[::-1, order],
        labels=scores.labels[::-1, order],
        own=scores.own[order],
        patients=[scores.patients[row] for row in order],
    )
    before = {finding.target.name: finding for finding in audit_of(scores).findings}
    for finding in audit_of(mixed).findings:
        expected = before[finding.target.name]
        assert finding.numbers["mean"].value == pytest.approx(expected.numbers["mean"].value)
        assert finding.numbers["mean"].low == pytest.approx(expected.numbers["mean"].low)
        assert finding.p_value == pytest.approx(expected.p_value)


def rate(draw, replicates):
    return np.mean([draw(seed) for seed in range(replicates)])


@pytest.mark.experiment
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("test", ["permutation", "bootstrap", "delta"])
def test_type_one_error_under_a_generator_with_noise(repeats, images, test):
    def rejects(seed):
        scores = noisy_scores(size=300, repeats=repeats, images=images, noise=0.1, seed=seed)
        return audit_of(scores, test=test, seed=seed).findings[0].p_value <= 0.05

    assert 0.03 <= rate(rejects, 600) <= 0.07


@pytest.mark.experiment
@pytest.mark.parametrize(
    "setting",
    ["exact_redrawn", "learned_redrawn", "learned_without_graph"],
)
def test_type_one_error_in_tabular_worlds(setting):
    calibration = Calibration(individuals=200, learning=200)
    found = [replicate(setting, calibration, config(), seed=seed) for seed in range(400)]
    # 400 replicates have a standard error of 0.011.
    assert 0.025 <= np.mean([each.p_value <= 0.05 for each in found]) <= 0.075


def share_of_targets(audits, **data):
    """Share of p-values up to 0.05 over audits of 25 classifiers each, whose scores are independent."""
    found = [audit_of(noisy_scores(targets=25, seed=seed, **data), seed=seed) for seed in range(audits)]
    return np.mean([each.p_value <= 0.05 for audit in found for each in audit.findings])


@pytest.mark.slow
def test_type_one_error_is_near_its_level():
    # Of 300, within 2.8 standard errors.
    assert 0.02 <= share_of_targets(12, size=200, repeats=2, images=2, noise=0.1) <= 0.085


@pytest.mark.slow
def test_power_at_a_mean_effect_of_a_twentieth():
    calibration = Calibration(individuals=500, learning=200)
    found = [replicate("power", calibration, config(), seed=seed) for seed in range(100)]
    assert np.mean([each.p_value <= 0.05 for each in found]) >= 0.9


@pytest.mark.slow
def test_power_under_a_generator_as_noisy_as_the_effect():
    assert share_of_targets(4, size=500, shift=0.05, noise=0.02) >= 0.9


def _at_margin(kind, *, size, seed):
    """A classifier whose true effect of one kind is the default margin of 0.05."""
    random = np.random.default_rng(seed)
    own = random.integers(0, 2, size)
    base = random.uniform(0.1, 0.4, size)
    match kind:
        case "steady":  # every score moves by about the margin, no decision by it
            moved = base + random.normal(0.05, 0.05, size)
        case "rare":  # one in twenty moves all the way
            base, moved = np.zeros(size), (random.random(size) < 0.05).astype(float)
            base[0] = 0.4  # scores must differ somewhere
            moved[0] = 0.4
        case "both ways":  # nothing in the mean
            moved = base + random.choice([-1, 1], size) * np.abs(random.normal(0, 0.05 / 0.79788, size))
        case "flips":  # one decision in twenty, by the smallest of steps
            base = np.full(size, 0.499) - random.uniform(0, 0.01, size)
            moved = np.where(random.random(size) < 0.05, 0.501, base)
    return scores_of(np.clip(np.stack([base, moved], axis=-1), 0, 1)[None], own=own)


@pytest.mark.experiment
@pytest.mark.parametrize("size", [60, 200, 500])
@pytest.mark.parametrize("kind", ["steady", "rare", "both ways", "flips"])
def test_false_equivalence_at_the_margin(kind, size):
    def claims(seed):
        scores = _at_margin(kind, size=size, seed=seed)
        return audit_of(scores, seed=seed).findings[0].verdict == "invariant"

    # 400 replicates of a rate of 0.05 stay below 0.0725 with probability 0.98.
    assert rate(claims, 400) <= 0.0725


def test_permutation_p_values_do_not_depend_on_which_level_is_common():
    scores = noisy_scores(size=200, seed=5)
    swapped = replace(
        scores, own=1 - scores.own, intervened=scores.intervened[..., ::-1], levels=scores.levels[::-1]
    )
    assert audit_of(swapped).findings[0].p_value == audit_of(scores).findings[0].p_value
