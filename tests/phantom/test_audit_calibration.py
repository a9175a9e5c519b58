"""Phantom replicates of the audit's calibration: what is invariant by construction, and what is learned."""

import numpy as np
import pytest

from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.data.phantom.population import draw_population
from jobs.reproduction.cit_lr.calibration import ALPHA, phantom_replicates
from jobs.reproduction.cit_lr.experiment import Calibration, PhantomCalibration
from jobs.reproduction.cit_lr.phantom import (
    PhantomPool,
    TintBlind,
    _drawn,
    _drawn_patients,
    _learned,
    phantom_scores,
)
from tests.audit_scores import config

SETTINGS = PhantomCalibration(pool=300, individuals=50, learning=100)


@pytest.fixture(scope="module")
def pool():
    return PhantomPool.render(SETTINGS, exact=True)


def coordinates():
    place = (np.arange(32) + 0.5) / 32 - 0.5
    return np.tile(place, 32), np.repeat(place, 32)


def test_the_classifier_is_blind_to_tints_and_to_nothing_else(pool):
    across, down = coordinates()
    classifier = TintBlind.fit(pool.observed, pool.ill)
    scores = classifier.scores(pool.observed)
    assert classifier.scores(pool.observed + 0.3 * across - 0.2 * down) == pytest.approx(scores)
    assert np.abs(classifier.scores(pool.observed + 0.4 * across * down) - scores).max() > 0.01
    assert scores[pool.ill == 1].mean() > scores[pool.ill == 0].mean() + 0.1


def test_the_classifier_does_not_see_the_group_that_the_renderer_draws():
    record = draw_population(1, 0, 200, image_size=32).values
    none = np.zeros(200)
    own, other = (_drawn(record, level, 32, None) for level in (none, none + 1))
    ill = (record["severity.pleural_effusion"].numpy() > 0).astype(np.int64)
    effects = TintBlind.fit(own, ill).scores(other) - TintBlind.fit(own, ill).scores(own)
    # Rounding to grey levels moves each a little and their mean next to not at all; a clipped tint would.
    assert 0 < np.abs(effects).mean() < 0.005
    assert abs(effects.mean()) < 0.0005


def test_levels_are_drawn_for_patients_and_nothing_else_hangs_on_them(pool):
    for patient in set(pool.patients):
        assert len(set(pool.own[[each == patient for each in pool.patients]])) == 1
    assert abs(np.corrcoef(pool.own, pool.ill)[0, 1]) < 0.2
    assert 0.4 < pool.own.mean() < 0.6


def test_redrawn_images_are_of_the_same_patients_with_other_noise(pool):
    across, _ = coordinates()
    first, second, _ = pool.redrawn
    assert (first != pool.observed).any(axis=1).all()
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(first, pool.observed, strict=True)]
    others = [np.corrcoef(a, b)[0, 1] for a, b in zip(first, np.roll(pool.observed, 7, axis=0), strict=True)]
    assert np.mean(alike) > np.mean(others) + 0.05
    # Group b is brighter from side to side by 0.02 of the range, which is 0.04 of -1 to 1.
    slope = (second - first) @ across / (across @ across)
    assert slope.mean() == pytest.approx(0.04, abs=0.01)


def test_patients_are_drawn_whole_and_audited_apart_from_those_learned_from(pool):
    learning, audited = _drawn_patients(pool, SETTINGS, np.random.default_rng(0))
    names = np.array(pool.patients)
    assert not set(names[learning]) & set(names[audited])
    for rows, wanted in ((learning, 100), (audited, 50)):
        assert wanted <= len(rows) <= wanted + 2
        assert np.isin(names, names[rows]).sum() == len(rows)


def test_the_generator_learns_the_tint_and_its_null_generators_do_not(pool):
    across, _ = coordinates()
    learning, audited = _drawn_patients(pool, SETTINGS, np.random.default_rng(0))
    (first, second), [null] = _learned(pool, learning, audited, 0, np.random.default_rng(0))
    images, own = pool.observed[audited], pool.own[audited]
    assert null == pytest.approx(images)
    assert first[own == 0] == pytest.approx(images[own == 0])
    assert second[own == 1] == pytest.approx(images[own == 1])

    def slope(change):
        return float(change.mean(axis=0) @ across / (across @ across))

    assert slope(second - first) == pytest.approx(0.04, abs=0.02)
    _, placebo = _learned(pool, learning, audited, 19, np.random.default_rng(0))
    # Shuffled levels are flipped in both directions, so that not even their errors add up in the mean.
    assert np.std([slope(part - images) for part in placebo]) < 0.01


def test_scores_of_a_replicate_fit_the_audit_and_repeat(pool):
    learned = phantom_scores(pool, "learned", SETTINGS, seed=3)
    assert learned.placebo.shape == (1, len(learned), 19)
    assert learned.placebo_unit == "generator"
    again = phantom_scores(pool, "learned", SETTINGS, seed=3)
    assert (learned.intervened == again.intervened).all()
    assert phantom_scores(pool, "learned", SETTINGS, seed=4).patients != learned.patients
    for kind in ("exact_redrawn", "learned_alone"):
        scores = phantom_scores(pool, kind, SETTINGS, seed=3)
        assert (scores.placebo.shape[-1], scores.placebo_unit) == (1, "individual")
        [finding] = counterfactual_effect(scores, config(permutations=199), readings=[]).findings
        assert (finding.first, finding.second) == ("a", "b")


@pytest.mark.experiment
@pytest.mark.parametrize("setting", ["phantom_exact_redrawn", "phantom_learned"])
def test_type_one_error_on_the_phantom(setting):
    calibration = Calibration(replicates=400, permutations=199)
    found = phantom_replicates(setting, PhantomCalibration(), calibration, config())
    assert 0.025 <= np.mean([each.p_value <= ALPHA for each in found]) <= 0.075  # standard error 0.011
