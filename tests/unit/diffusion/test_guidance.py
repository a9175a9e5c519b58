"""Classifier-free guidance by hand, and its identities."""

import pytest
import torch

from counterray.diffusion.guidance import Guided, guided
from tests.unit.diffusion.toys import Gaussian, texts

NOISY = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
TIME = torch.tensor([400, 700])
CONDITION, NULL = texts([1.0, -2.0]), texts([0.0])


def test_by_hand():
    def network(noisy, timestep, condition):
        return torch.zeros_like(noisy) + condition.states[:, :1, :1, None]

    found = Guided(network, texts([10.0]), 3.0)(NOISY, TIME, CONDITION)
    # 10 + 3 (1 - 10) and 10 + 3 (-2 - 10)
    assert found[:, 0, 0, 0].tolist() == [-17.0, -26.0]


def test_no_guidance_is_bitwise_the_conditional_network():
    network = Gaussian()
    assert torch.equal(Guided(network, NULL, 1.0)(NOISY, TIME, CONDITION), network(NOISY, TIME, CONDITION))
    assert network.calls == [2, 2]
    assert guided(network, CONDITION, None, 1.0) is network


def test_weight_zero_is_bitwise_the_unconditional_network():
    network = Gaussian()
    assert torch.equal(
        Guided(network, NULL, 0.0)(NOISY, TIME, CONDITION), network(NOISY, TIME, texts([0.0, 0.0]))
    )
    assert network.calls == [2, 2]


def test_both_terms_come_from_one_call():
    network = Gaussian()
    found = guided(network, CONDITION, NULL, 2.5)(NOISY, TIME, CONDITION)
    assert network.calls == [4]
    without, within = network(NOISY, TIME, texts([0.0, 0.0])), network(NOISY, TIME, CONDITION)
    torch.testing.assert_close(found, without + 2.5 * (within - without))


def test_null_of_each_sample_and_one_timestep_for_all():
    network = Gaussian()
    own = Guided(network, texts([3.0, 4.0]), 2.0)(NOISY, torch.tensor(400), CONDITION)
    rows = [
        Guided(network, texts([null]), 2.0)(NOISY[i : i + 1], TIME[:1], CONDITION[i : i + 1])
        for i, null in enumerate((3.0, 4.0))
    ]
    assert torch.equal(own, torch.cat(rows))


def test_what_guidance_cannot_do():
    with pytest.raises(ValueError, match=r"guidance_scale = 2\.0 needs a condition"):
        guided(Gaussian(), None, NULL, 2.0)
    with pytest.raises(ValueError, match="null condition"):
        guided(Gaussian(), CONDITION, None, 2.0)
    with pytest.raises(ValueError, match="needs a condition"):
        Guided(Gaussian(), NULL, 2.0)(NOISY, TIME, None)
    for null in (texts([0.0], tokens=7), texts([0.0, 0.0, 0.0])):
        with pytest.raises(ValueError, match="do not fit"):
            Guided(Gaussian(), null, 2.0)(NOISY, TIME, CONDITION)
