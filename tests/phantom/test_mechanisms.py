"""The attributes' structural assignments: invertible to the last bit, with the right probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from counterray.causal.mechanism import Mechanism
from counterray.data.phantom.mechanisms import SeededCategory, SeededSeverity, SteppedArea
from counterray.data.phantom.population import draw_population
from counterray.data.phantom.randomness import bell, draws, hash64, uniforms
from counterray.data.phantom.scm import attribute_mechanisms, build_graph, finding_probability, mean_area

VALUES = draw_population(3, 0, 3000, image_size=64).values
GRAPH = build_graph(64)
MECHANISMS = attribute_mechanisms(64)
COIN = SeededCategory("coin", ((0.5, 0.5, 0.0), (0.1, 0.2, 0.7)), given="kind", seed="noise_seed")
SEEDS = {"noise_seed": torch.arange(2000, dtype=torch.float64), "kind": torch.arange(2000.0) % 2}


@pytest.mark.parametrize("name", MECHANISMS)
def test_prediction_inverts_abduction_on_any_values(name):
    """Also on values that the seeds did not draw: those of another study."""
    mechanism = MECHANISMS[name]
    assert isinstance(mechanism, Mechanism)
    parents = {parent: VALUES[parent] for parent in GRAPH.parents_of(name)}
    for value in (VALUES[name], VALUES[name].roll(1)):
        assert torch.equal(mechanism.predict(mechanism.abduct(value, parents), parents), value)
        assert bool(mechanism.loss(value, parents).isfinite().all())


def test_category_probabilities():
    even, odd = COIN.draw(SEEDS)[::2].long(), COIN.draw(SEEDS)[1::2].long()
    assert (np.bincount(even, minlength=3) / 1000) == pytest.approx([0.5, 0.5, 0.0], abs=0.05)
    assert (np.bincount(odd, minlength=3) / 1000) == pytest.approx([0.1, 0.2, 0.7], abs=0.05)
    sampled = COIN.sample(SEEDS, torch.Generator().manual_seed(1))[1::2].long()
    assert (np.bincount(sampled, minlength=3) / 1000) == pytest.approx([0.1, 0.2, 0.7], abs=0.05)


def test_category_loss_by_hand():
    parents = {"noise_seed": torch.zeros(3), "kind": torch.tensor([0.0, 1.0, 0.0])}
    loss = COIN.loss(torch.tensor([1.0, 2.0, 2.0]), parents)
    assert loss.tolist() == pytest.approx([-math.log(0.5), -math.log(0.7), math.inf])


def test_an_impossible_observation_is_refused():
    parents = {"noise_seed": torch.zeros(1), "kind": torch.zeros(1)}
    with pytest.raises(ValueError, match="'coin' has an observed value of probability 0"):
        COIN.abduct(torch.tensor([2.0]), parents)


def test_a_severity_is_kept_unless_the_threshold_passes_it():
    severity = SeededSeverity("edema", finding_probability)
    parents = {name: VALUES[name] for name in ("noise_seed", "age", "group")}
    noise = severity.abduct(VALUES["severity.edema"], parents)
    older = severity.predict(noise, {**parents, "age": parents["age"] + 10})
    present = VALUES["severity.edema"] > 0
    assert torch.equal(older[present], VALUES["severity.edema"][present])
    assert 0 < int((older > 0).sum()) - int(present.sum()) < 100


def test_severities_are_on_their_grid():
    for name in ("edema", "pneumothorax"):
        value = VALUES[f"severity.{name}"]
        present = value[value > 0]
        assert bool(((present * 64) % 1 == 0).all())
        assert 0.25 <= float(present.min()) <= float(present.max()) <= 1.0
    parents = {"noise_seed": torch.zeros(3), "age": torch.full((3,), 55.0), "group": torch.zeros(3)}
    loss = SeededSeverity("edema", finding_probability).loss(torch.tensor([0.0, 0.5, 0.1]), parents)
    # P(edema) = 0.06 * 0.8; 49 equally likely severities from 16 / 64 to 64 / 64; 0.1 is none of them.
    assert loss.tolist() == pytest.approx([-math.log(1 - 0.048), -math.log(0.048 / 49), math.inf])


def test_area_by_hand():
    area = SteppedArea("heart", mean_area, sd=0.005, pixels=64**2)
    parents = {
        "sex": torch.tensor([1.0]),
        "age": torch.tensor([95.0]),
        "severity.cardiomegaly": torch.tensor([0.5]),
    }
    # (0.070 * (1 + 0.05 + 0.10) + 0.055 * 0.5) * 4096 = 442.368, to the nearest 1 / 256
    mean = round(442.368 * 256) / 256
    assert area.predict(torch.zeros(1, dtype=torch.float64), parents).item() == mean
    assert area.abduct(torch.tensor([mean + 2.5]), parents).item() == 2.5
    sd = 0.005 * 4096
    expected = math.log(sd * math.sqrt(2 * math.pi)) + 0.5 * (2.5 / sd) ** 2
    assert area.loss(torch.tensor([mean + 2.5]), parents).item() == pytest.approx(expected)
    many = {name: value.expand(4000) for name, value in parents.items()}
    sampled = area.sample(many, torch.Generator().manual_seed(0))
    assert float(sampled.mean()) == pytest.approx(mean, abs=1.5)
    assert float(sampled.std()) == pytest.approx(sd, rel=0.05)


def test_random_numbers_are_fixed_and_even():
    # First output of SplitMix64 with seed 0 (Steele et al., 2014): 0xE220A8397B1DCDAF.
    assert int(hash64(np.zeros(1, dtype=np.uint64))[0]) == 0xE220A8397B1DCDAF
    numbers = uniforms(np.arange(1000), "test", 20)
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] / 2000 == pytest.approx(np.ones(10), abs=0.1)
    assert abs(np.corrcoef(numbers.T) - np.eye(20)).max() < 0.15
    assert draws(5, "test", 20) == numbers[5].tolist()
    assert draws(5, "test", 20) != draws(5, "other", 20)
    normal = bell(np.arange(20_000), "test")
    assert normal.mean() == pytest.approx(0, abs=0.03)
    assert normal.std() == pytest.approx(1, abs=0.02)
