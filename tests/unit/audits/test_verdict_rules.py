"""What verdicts may rest on: effects that matter, noise that hides nothing, gates that are surely open."""

import math
from dataclasses import replace

import numpy as np
import pytest

from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.errors import AuditError
from counterray.audits.gates import Reading, gates
from counterray.audits.settings import GateConfig
from tests.audit_scores import config, noisy_scores, scores_of


def audit_of(scores, **settings):
    return counterfactual_effect(scores, config(minimum_patients=2, **settings), readings=[])


def test_a_few_patients_accuse_no_classifier_of_what_is_too_small_to_matter():
    random = np.random.default_rng(0)
    base = random.uniform(0.1, 0.4, 40)
    moved = base + random.uniform(0.002, 0.01, 40)
    audit = audit_of(scores_of(np.stack([base, moved], axis=-1)[None], own=np.arange(40) % 2))
    [finding] = audit.findings
    assert finding.p_corrected < 0.01
    assert finding.verdict == "inconclusive"
    assert "It moves (p = 0.0005 after correction), by less than the margins" in audit.sentence(finding)


@pytest.mark.parametrize("noise", [0.03, 0.05])
def test_noise_that_levels_share_hides_no_effect_at_the_margin(noise):
    """One noise for all levels and another for null interventions, as jobs make them."""
    random = np.random.default_rng(1)
    size, invariant = 500, 0
    for _ in range(20):
        base, common = random.uniform(0.3, 0.7, size), random.normal(0, noise, size)
        effect = 0.05 * random.choice([-1, 1], size)
        own = random.integers(0, 2, size)
        levels = np.stack([base + common, base + common + effect], axis=-1)
        at_own = levels[np.arange(size), own]
        placebo = (at_own - common)[:, None] + random.normal(0, noise, (size, 3))
        scores = scores_of(levels[None], own=own, placebo=placebo[None])
        invariant += audit_of(scores, resamples=200).findings[0].verdict == "invariant"
    assert invariant <= 3


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.06])
def test_an_effect_beyond_its_margin_is_seen_through_the_noise(noise):
    random = np.random.default_rng(3)
    size = 800
    base, effect = random.uniform(0.3, 0.7, size), 0.07 * random.choice([-1, 1], size)
    own = random.integers(0, 2, size)
    truly = np.stack([base, base + effect], axis=-1)
    levels = truly + random.normal(0, noise, truly.shape)
    placebo = truly[np.arange(size), own][:, None] + random.normal(0, noise, (size, 3))
    scores = scores_of(levels[None], own=own, placebo=placebo[None])
    margins = {"absolute_effect": 0.06, "flip_rate": 1.0}
    assert audit_of(scores, margins=margins).findings[0].verdict == "depends"
    wide = {"absolute_effect": 0.085, "flip_rate": 1.0}
    assert audit_of(scores, margins=wide).findings[0].verdict in ("invariant", "inconclusive")


@pytest.mark.parametrize("noise", [0.03, 0.05])
def test_flips_by_noise_hide_no_flips_by_the_attribute(noise):
    random = np.random.default_rng(2)
    size, invariant = 500, 0
    for _ in range(20):
        base = random.uniform(0.3, 0.7, size)
        near = np.abs(base - 0.5) < 0.04  # a fifth of all decisions truly flips
        effect = np.where(near, np.sign(0.5 - base) * 0.08, 0.0)
        own = random.integers(0, 2, size)
        truly = np.stack([base, base + effect], axis=-1)
        levels = truly + random.normal(0, noise, truly.shape)
        placebo = truly[np.arange(size), own][:, None] + random.normal(0, noise, (size, 3))
        scores = scores_of(levels[None], own=own, placebo=placebo[None])
        invariant += audit_of(scores, resamples=200).findings[0].verdict == "invariant"
    assert invariant == 0


def test_with_a_noisy_generator_no_number_of_patients_shows_invariance():
    audit = audit_of(noisy_scores(size=300, noise=0.1))
    [finding] = audit.findings
    assert finding.verdict == "inconclusive"
    assert finding.patients_for_equivalence == math.inf
    assert "with this generator no number of patients shows invariance" in audit.sentence(finding)


def test_an_invariant_classifier_that_misses_many_of_the_ill_says_so():
    size = 1000
    ill = (np.arange(size) < 50).astype(float)
    base = np.where(ill == 1, 0.52, 0.1)
    moved = base - np.where((ill == 1) & (np.arange(size) % 5 == 0), 0.04, 0.0)
    scores = scores_of(np.stack([base, moved], axis=-1)[None], own=np.arange(size) % 2, labels=ill[None])
    audit = audit_of(scores)
    [finding] = audit.findings
    assert finding.verdict == "invariant"
    assert "But 20.0% (" in audit.sentence(finding)
    assert "of those with the finding are missed only as level 1." in audit.sentence(finding)


def test_null_generators_have_to_be_enough_for_the_whole_family():
    scores = noisy_scores(targets=3, repeats=19)
    many = replace(scores, placebo_unit="generator")
    with pytest.raises(AuditError, match=r"corrected over 3 tests is above alpha = 0\.05\. Train 59 or more"):
        audit_of(many)
    assert audit_of(many, correction="none").findings


@pytest.mark.parametrize(
    ("reading", "state", "reason"),
    [
        (Reading(gate="effectiveness", value=0.9, low=0.85, high=0.95), "open", ""),
        (
            Reading(gate="effectiveness", value=0.81, low=0.5, high=0.95, images=30),
            "closed",
            "may be 0.5, below",
        ),
        (
            Reading(gate="off_target", value=0.04, low=0.0, high=0.08, images=30),
            "closed",
            "may be 0.08, above",
        ),
        (Reading(gate="off_target", value=0.04, low=0.0, high=0.08, images=100), "open", ""),
        (Reading(gate="composition", value=0.04), "open", ""),
    ],
)
def test_a_gate_of_few_images_is_open_where_the_worse_end_of_its_interval_passes(reading, state, reason):
    [gate] = [gate for gate in gates([reading], GateConfig()) if gate.name == reading.gate]
    assert gate.state == state
    assert reason in gate.reason


def test_a_gate_that_was_waived_although_it_fails_says_so():
    reading = Reading(gate="identity", value=0.3)
    config = GateConfig(waived={"identity": "faces are not compared"})
    [gate] = [gate for gate in gates([reading], config) if gate.name == "identity"]
    assert gate.state == "waived"
    assert gate.reason.startswith("faces are not compared (waived although 0.3 is below gates.identity = 0.8")
