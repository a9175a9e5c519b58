"""The identity encoder."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from counterray.models.predictors.identity import (
    IdentityEncoder,
    IdentityEncoderConfig,
    IdentityEncoderStage,
    supervised_contrastive,
)
from counterray.training.loop import train
from tests.predictor_toys import DATA, batch, batches


def test_contrastive_loss_by_hand():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # Anchors 0 and 1: −log(e / (e + 1)) at temperature 1; anchor 2 has no positive and does not count.
    expected = -math.log(math.e / (math.e + 1))
    assert float(supervised_contrastive(features, torch.tensor([5, 5, 9]), 1.0)) == pytest.approx(expected)


def test_contrastive_loss_averages_over_positives_outside_the_logarithm():
    features = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.2]]))
    groups = torch.tensor([0, 0, 0, 1])
    total = 0.0
    for i in range(3):
        others = [a for a in range(4) if a != i]
        denominator = sum(math.exp(float(features[i] @ features[a]) / 0.5) for a in others)
        for p in {0, 1, 2} - {i}:
            total += -math.log(math.exp(float(features[i] @ features[p]) / 0.5) / denominator) / 2
    assert float(supervised_contrastive(features, groups, 0.5)) == pytest.approx(total / 3, rel=1e-5)


def test_contrastive_loss_without_positives_is_zero_with_finite_gradients():
    raw = torch.randn(3, 4, requires_grad=True)
    loss = supervised_contrastive(torch.nn.functional.normalize(raw), torch.arange(3), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.isfinite(raw.grad).all()


def test_features_are_unit_length_and_differentiable_in_the_image():
    module = IdentityEncoder(IdentityEncoderConfig(), 32).requires_grad_(False)
    image = batch(2, 0).image.requires_grad_()
    features = module.features(image)
    assert features.shape == (2, 64)
    assert torch.allclose(features.norm(dim=1), torch.ones(2))
    features[0, 0].backward()
    assert float(image.grad[0].abs().sum()) > 0
    assert float(image.grad[1].abs().sum()) == 0
    assert module.bfloat16()(image).dtype == torch.float32


def test_learns_to_find_the_patient_again():
    stage = IdentityEncoderStage(IdentityEncoderConfig())
    training = batches(8, 64)
    module = train(stage, data=DATA, batches=lambda: training, steps=60, learning_rate=3e-3)
    metrics = stage.validate(module, [batch(64, 90)])
    assert metrics["mrr"] == metrics["reid_mrr"] > 0.4
    assert metrics["view_rank1"] > 0.3
    assert metrics["gallery"] == metrics["reid_queries"] == 64


def test_single_images_fall_back_to_views():
    torch.manual_seed(0)
    stage = IdentityEncoderStage(IdentityEncoderConfig())
    module = stage.build({}, DATA)
    anonymous = replace(batch(8, 0), patient_ids=())
    metrics = stage.validate(module, [anonymous, anonymous])
    assert "reid_mrr" not in metrics
    assert metrics["mrr"] == metrics["view_mrr"]
    assert metrics["gallery"] == 16
    assert stage.validate(module, [anonymous, anonymous]) == metrics


def test_a_batch_of_one_is_refused():
    stage = IdentityEncoderStage(IdentityEncoderConfig())
    module = stage.build({}, DATA)
    with pytest.raises(ValueError, match="has 1 image; a contrastive loss needs 2"):
        stage.loss(module, batch(1, 0), 0)
