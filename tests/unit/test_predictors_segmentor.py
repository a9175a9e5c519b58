"""The segmentor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from counterray.models.predictors.segmentor import (
    Segmentor,
    SegmentorConfig,
    SegmentorStage,
    dice,
    dice_loss,
    masks_of,
)
from counterray.training.loop import train
from tests.predictor_toys import DATA, MASKS, batch, batches, with_unknown

CONFIG = SegmentorConfig(masks=MASKS)


def test_dice_by_hand():
    ours = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    truth = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # One shared pixel of 2 and 2; both empty; one of them empty.
    assert dice(ours, truth).tolist() == [0.5, 1.0, 0.0]


def test_dice_loss_by_hand():
    # Probability ½ at four pixels against a mask of two: 1 − (2 · 1 + 1) / (2 + 2 + 1).
    logits = torch.zeros(1, 1, 2, 2)
    masks = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    present = torch.ones(1, 1, dtype=torch.bool)
    assert float(dice_loss(logits, masks, present)) == pytest.approx(1 - 3 / 5)
    assert float(dice_loss(logits, masks, ~present)) == 0


def test_missing_masks_are_ignored_by_the_loss_and_its_gradient():
    torch.manual_seed(0)
    stage = SegmentorStage(SegmentorConfig(masks=MASKS, augmentation="none"))
    module = stage.build({}, DATA)
    whole = batch(4, 0)
    missing = replace(
        whole, masks=with_unknown(with_unknown(whole.masks, "heart", [2, 3]), "left_lung", [2, 3])
    )
    partial = stage.loss(module, missing, 0)
    kept = stage.loss(module, whole.select(torch.tensor([0, 1])), 0)
    assert float(partial.total.detach()) == pytest.approx(float(kept.total.detach()), rel=1e-5)
    partial.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_presence_is_told_by_mask_and_image():
    toy = batch(3, 0)
    masks, present = masks_of(replace(toy, masks=with_unknown(toy.masks, "heart", [1])), MASKS)
    assert present.tolist() == [[True, True], [True, False], [True, True]]
    assert torch.isfinite(masks).all()


def test_batch_or_dataset_without_the_mask_is_refused():
    toy = batch(2, 0)
    with pytest.raises(ValueError, match=r"Setting masks asks for right_lung.*heart, left_lung"):
        masks_of(toy, ("right_lung",))
    with pytest.raises(ValueError, match="Setting masks asks for right_lung"):
        SegmentorStage(SegmentorConfig()).build({}, DATA)


def test_areas_count_pixels():
    torch.manual_seed(0)
    module = Segmentor(CONFIG, 32)
    image = batch(2, 0).image.requires_grad_()
    counted = module.areas(image)
    assert tuple(counted) == MASKS
    assert torch.equal(counted["heart"], (module(image)[:, 1] > 0).sum(dim=(1, 2)).float())
    soft = module.areas(image, kind="soft")
    assert torch.allclose(soft["left_lung"], module(image)[:, 0].sigmoid().sum(dim=(1, 2)))
    soft["left_lung"].sum().backward()
    assert image.grad is not None
    assert float(image.grad.abs().sum()) > 0


def test_learns_to_outline_and_to_measure():
    stage = SegmentorStage(CONFIG)
    training = batches(4, 16)
    module = train(stage, data=DATA, batches=lambda: training, steps=50, learning_rate=5e-3)
    metrics = stage.validate(module, [batch(48, 60)])
    assert metrics["dice_mean"] > 0.9
    assert metrics["area_error.heart"] < 0.15
    assert stage.needs_masks == MASKS


def test_validation_leaves_out_missing_masks_and_areas_of_nothing():
    stage = SegmentorStage(CONFIG)
    module = stage.build({}, DATA)
    toy = batch(3, 0)
    metrics = stage.validate(module, [replace(toy, masks=with_unknown(toy.masks, "heart", [0, 1, 2]))])
    assert set(metrics) == {"dice_mean", "dice.left_lung", "area_error.left_lung"}
    empty = replace(toy, masks={name: torch.zeros_like(mask) for name, mask in toy.masks.items()})
    assert set(stage.validate(module, [empty])) == {"dice_mean", "dice.left_lung", "dice.heart"}
    nothing = with_unknown(with_unknown(toy.masks, "heart", [0, 1, 2]), "left_lung", [0, 1, 2])
    with pytest.raises(ValueError, match="No validation image has any of the masks"):
        stage.validate(module, [replace(toy, masks=nothing)])


def test_bfloat16_gives_float32_logits():
    module = Segmentor(CONFIG, 32).bfloat16()
    logits = module(batch(2, 0).image)
    assert logits.shape == (2, 2, 32, 32)
    assert logits.dtype == torch.float32


def test_other_image_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(36 px\) must be divisible by .* = 8"):
        Segmentor(CONFIG, 36)
    with pytest.raises(ValueError, match="made for images"):
        Segmentor(CONFIG, 64)(batch(2, 0).image)
