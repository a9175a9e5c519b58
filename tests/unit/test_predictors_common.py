"""What the judges share: labels, AUROC, retrieval, augmentation, blocks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from counterray.config import ConfigError, validate
from counterray.models.predictors import augmentation, common
from counterray.models.predictors.retrieval import mean_reciprocal_rank, ranks, recall
from counterray.nn.backbone import Backbone, BackboneConfig
from counterray.nn.blocks import ResidualBlock, Upsample, normalization
from tests.predictor_toys import batch


def test_labels_are_picked_by_name_and_unknown_ones_are_zero_and_masked():
    toy = batch(4, 0)
    mask = torch.tensor([[1, 1], [0, 1], [1, 0], [1, 1]], dtype=torch.bool)
    findings = torch.where(mask, toy.findings, torch.tensor(float("nan")))
    labels, known = common.labels_of(replace(toy, findings=findings, finding_mask=mask), ("fracture",))
    assert known.tolist() == [[True], [True], [False], [True]]
    assert labels[known].tolist() == toy.findings[:, 1:][known].tolist()
    assert labels[2, 0] == 0


def test_uncertain_label_is_refused_unless_masked():
    toy = batch(2, 0)
    findings = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="policy to ignore, zeros or ones"):
        common.labels_of(replace(toy, findings=findings), ("edema",))
    masked = replace(toy, findings=findings, finding_mask=torch.tensor([[False, True], [True, True]]))
    labels, _ = common.labels_of(masked, ("edema",))
    assert labels.tolist() == [[0.0], [1.0]]


def test_unknown_finding_lists_what_exists():
    with pytest.raises(ValueError, match=r"asks for pneumonia.*edema, fracture"):
        common.labels_of(batch(2, 0), ("edema", "pneumonia"))


def test_auroc_by_hand():
    # Of the four pairs (positive, negative) three are ordered rightly.
    scores, labels = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert common.auroc(scores, labels) == pytest.approx(0.75)
    assert common.auroc(scores, torch.zeros(4)) is None
    assert common.auroc(scores[:0], labels[:0]) is None


def test_finding_metrics_skip_and_count_findings_of_one_class():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.6]])
    labels = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    metrics = common.finding_metrics(scores, labels, torch.ones(2, 3).bool(), ("a", "b", "c"))
    assert metrics == {"auroc_macro": 0.5, "auroc_findings": 2.0, "auroc.a": 1.0, "auroc.b": 0.0}


def test_finding_metrics_use_known_labels_only():
    scores = torch.tensor([[0.1], [0.9], [0.0]])
    labels = torch.tensor([[0.0], [1.0], [1.0]])
    known = torch.tensor([[True], [True], [False]])
    assert common.finding_metrics(scores, labels, known, ("a",))["auroc.a"] == 1.0
    with pytest.raises(ValueError, match="No finding has both"):
        common.finding_metrics(scores, labels, ~known, ("a",))


def test_ranks_by_hand():
    gallery = torch.eye(3)
    queries = torch.tensor([[1.0, 0.1, 0.0], [0.9, 0.5, 0.1], [0.5, 0.4, 0.1]])
    found = ranks(queries, gallery, ["a", "b", "c"], ["a", "b", "c"])
    assert found.tolist() == [1, 2, 3]
    assert recall(found, 1) == pytest.approx(1 / 3)
    assert recall(found, 2) == pytest.approx(2 / 3)
    assert mean_reciprocal_rank(found) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_ranks_within_one_set_skip_the_image_itself_and_single_images():
    features = torch.tensor([[1.0, 0.0], [0.9, 0.4], [0.0, 1.0], [1.0, 0.1]])
    found = ranks(features, features, list("aabc"), list("aabc"), exclude_self=True)
    # Image 0 meets image 3 (of c) before image 1; image 1 meets image 3 too: cos (0.94) > (0.9).
    assert found.tolist() == [2, 2]


def test_constant_features_earn_the_worst_rank():
    same = torch.ones(4, 2)
    assert ranks(same, same, list("abcd"), list("abcd")).tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize("change", [augmentation.augment, augmentation.paint_lesions])
def test_augmentation_keeps_shape_and_range_and_follows_the_global_generator(change):
    image = batch(3, 0).image
    torch.manual_seed(7)
    once = change(image)
    torch.manual_seed(7)
    again = change(image)
    other = change(image)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert once.shape == image.shape
    assert once.min() >= -1
    assert once.max() <= 1


def test_augmentation_without_strength_is_the_identity():
    image = batch(3, 0).image
    assert torch.allclose(augmentation.move(image, shift=0, scale=0, degrees=0), image, atol=1e-5)
    assert torch.allclose(augmentation.vary_exposure(image, gamma=0, noise=0, blur=0), image, atol=3e-4)
    assert torch.equal(augmentation.paint_lesions(image, count=0), image)


def test_movement_stays_small():
    image = torch.full((64, 1, 32, 32), -1.0)
    image[:, :, 15:17, 15:17] = 1
    moved = (augmentation.move(image, shift=0.1, scale=0, degrees=0) + 1).clamp(min=0)
    columns = torch.arange(32.0)
    centre = (moved * columns).sum(dim=(1, 2, 3)) / moved.sum(dim=(1, 2, 3))
    assert (centre - 15.5).abs().max() <= 0.1 * 32 + 0.1
    assert (centre - 15.5).abs().max() > 1


def test_translation_moves_pixels_without_changing_them():
    torch.manual_seed(0)
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(32, 1, 8, 8)
    moved = augmentation.translate(image, shift=0.2)
    assert torch.equal(augmentation.translate(image, shift=0), image)
    inside = moved[:, :, 2:6, 2:6]
    # One row down is 8 more, one column right is 1 more: a constant difference inside every image.
    difference = inside - image[:, :, 2:6, 2:6]
    assert torch.equal(difference, difference[:, :, :1, :1].expand_as(difference))
    assert set(difference[:, 0, 0, 0].tolist()) <= {8.0 * r + c for r in range(-2, 3) for c in range(-2, 3)}
    assert len(set(difference[:, 0, 0, 0].tolist())) > 5


def test_repeatable_draws_leave_the_global_state_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with common.repeatable():
        first = torch.rand(2)
    with common.repeatable():
        second = torch.rand(2)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluating_puts_the_mode_back():
    module = torch.nn.Linear(1, 1).train()
    with common.evaluating(module):
        assert not module.training
        assert not module(torch.ones(1, 1)).requires_grad
    assert module.training


def test_blocks_have_the_shapes_they_say():
    x = torch.randn(2, 8, 16, 16)
    assert ResidualBlock(8, 12, stride=2)(x).shape == (2, 12, 8, 8)
    assert Upsample(8, 4)(x).shape == (2, 4, 32, 32)
    assert normalization(12).num_groups == 4
    same = ResidualBlock(8, 8)
    torch.nn.init.zeros_(same.conv_out.weight)
    torch.nn.init.zeros_(same.conv_out.bias)
    assert torch.equal(same(x), x)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_backbone_maps_halve_stage_by_stage(stride):
    backbone = Backbone(BackboneConfig(widths=(8, 16), blocks=(1, 2), stem_stride=stride), 32)
    image = torch.zeros(2, 1, 32, 32)
    edge = 32 // stride
    assert [tuple(m.shape) for m in backbone.maps(image)] == [
        (2, 8, edge, edge),
        (2, 16, edge // 2, edge // 2),
    ]
    assert backbone(image).shape == (2, 16)
    assert backbone.width == 16


def test_backbone_refuses_other_sizes_and_uneven_settings():
    with pytest.raises(ValueError, match=r"\(36 px\) must be divisible by .* 16"):
        Backbone(BackboneConfig(), 36)
    backbone = Backbone(BackboneConfig(widths=(8,), blocks=(1,)), 32)
    with pytest.raises(ValueError, match=r"made for images \[B, 1, 32, 32\], got \[2, 3, 32, 32\]"):
        backbone(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ConfigError, match="widths has 2 stages, blocks has 1"):
        validate(BackboneConfig, {"widths": [8, 16], "blocks": [1]})
    with pytest.raises(ConfigError, match="1 or more"):
        validate(BackboneConfig, {"widths": [8, 16], "blocks": [1, 0]})


def test_groupnorm_makes_predictions_independent_of_the_batch():
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(), 32)
    image = batch(4, 0).image
    assert torch.allclose(backbone(image)[:1], backbone(image[:1]), atol=1e-5)
    assert math.isfinite(float(backbone(image).detach().sum()))
