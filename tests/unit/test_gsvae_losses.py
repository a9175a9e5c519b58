"""Losses of gsvae against values by hand and against torchmetrics, and the pairing of a group step."""

import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from counterray.models.gsvae.losses import (
    LossWeights,
    feature_distance,
    kl_loss,
    random_partners,
    reconstruction_loss,
)
from counterray.nn.gaussian import kl_divergence
from counterray.nn.ssim import structural_similarity


@pytest.mark.parametrize("shape", [(3, 1, 32, 32), (2, 1, 24, 40)])
def test_ssim_is_that_of_torchmetrics(shape):
    torch.manual_seed(0)
    first = torch.rand(shape) * 2 - 1
    second = (first + 0.3 * torch.randn(shape)).clamp(-1, 1)
    expected = structural_similarity_index_measure(second, first, data_range=2.0, reduction="none")
    torch.testing.assert_close(structural_similarity(first, second), expected, rtol=0, atol=2e-5)


def test_ssim_of_constants_by_hand():
    first, second = torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), 0.1)
    stability = 0.02**2
    expected = (2 * 0.05 + stability) / (0.25 + 0.01 + stability)  # no structure: luminance alone
    assert structural_similarity(first, second).item() == pytest.approx(expected, abs=1e-4)


def test_ssim_of_an_image_with_itself_is_one():
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    torch.testing.assert_close(structural_similarity(image, image), torch.ones(2))


def test_ssim_refuses_images_below_its_radius():
    with pytest.raises(ValueError, match="5 px"):
        structural_similarity(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5))


def test_reconstruction_by_hand():
    image, reconstruction = torch.full((2, 1, 16, 16), 0.5), torch.full((2, 1, 16, 16), 0.1)
    ssim = (2 * 0.05 + 0.0004) / (0.26 + 0.0004)
    loss = reconstruction_loss(image, reconstruction, ssim_weight=0.01)
    assert loss.item() == pytest.approx(0.16 + 0.01 * (1 - ssim), abs=1e-5)


def test_kl_by_hand():
    mean, log_variance = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[math.log(4.0), 0.0]]]])
    first = 0.5 * (1 + 4 - math.log(4) - 1)  # KL(N(1, 4) || N(0, 1)); the second element is the prior
    torch.testing.assert_close(kl_divergence(mean, log_variance).flatten(), torch.tensor([first, 0.0]))
    assert kl_loss(mean, log_variance, reduction="per_element").item() == pytest.approx(first / 2)
    assert kl_loss(mean, log_variance, reduction="per_image").item() == pytest.approx(first)


def test_kl_reductions_differ_by_the_number_of_elements():
    mean, log_variance = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    per_element = kl_loss(mean, log_variance, reduction="per_element")
    torch.testing.assert_close(kl_loss(mean, log_variance, reduction="per_image"), per_element * 100)


def test_feature_distance_by_hand():
    features, target = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    assert feature_distance(features, target).item() == pytest.approx((2.0 + 0.0) / 2)  # 2 - 2 cos
    assert feature_distance(features, -features).item() == pytest.approx(4.0)


@pytest.mark.parametrize("batch_size", [2, 3, 4, 5, 32, 33])
def test_partners_are_a_permutation_without_fixed_points(batch_size):
    torch.manual_seed(batch_size)
    index = torch.arange(batch_size)
    for _ in range(20):
        partner = random_partners(batch_size, torch.device("cpu"))
        assert torch.equal(partner.sort().values, index)
        assert not (partner == index).any()
        if batch_size % 2 == 0:
            assert torch.equal(partner[partner], index)


def test_partners_come_from_the_global_random_state():
    torch.manual_seed(3)
    first = random_partners(16, torch.device("cpu"))
    torch.manual_seed(3)
    assert torch.equal(first, random_partners(16, torch.device("cpu")))
    assert not torch.equal(first, random_partners(16, torch.device("cpu")))


def test_one_image_has_no_partner():
    with pytest.raises(ValueError, match="at least 2"):
        random_partners(1, torch.device("cpu"))


def test_weights_are_the_papers():
    weights = LossWeights()
    published = (weights.ssim, weights.kl, weights.classification, weights.identity, weights.pathology)
    assert published == (0.01, 0.1, 5.0, 1.0, 2.5)
