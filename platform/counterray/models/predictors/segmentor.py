"""The segmentor: a U-Net that outlines organs, and from its outlines measures areas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterray.bundle import Bundle
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.models.predictors.augmentation import vary_exposure
from counterray.models.predictors.common import (
    PredictorStage,
    chosen,
    evaluating,
    export,
    require_built,
)
from counterray.nn.blocks import (
    ResidualBlock,
    Upsample,
    channels_last,
    normalization,
    require_images,
)
from counterray.training.stage import Export, Losses, StageConfig


class SegmentorConfig(StageConfig):
    """Settings of the segmentor. The default suits 64×64 on one CPU core."""

    stage: Literal["segmentor"] = "segmentor"
    """Name of the stage."""
    masks: tuple[str, ...] = Field(default=("left_lung", "right_lung", "heart"), min_length=1)
    """Masks to predict, one output channel each; they may overlap."""
    widths: tuple[int, ...] = Field(default=(16, 32, 64), min_length=2)
    """Channels after the stem and at each halving below it; (64, 128, 256, 512) for 256×256 and more."""
    stem_stride: Literal[1, 2, 4] = 2
    """Reduction of height and width before the U-Net; the head gives it back, pixel by pixel."""
    blocks: int = Field(default=1, ge=1)
    """Residual blocks at each resolution, on the way down and on the way up."""
    dice_weight: float = Field(default=1.0, ge=0)
    """Weight of the Dice loss beside the binary cross-entropy's 1."""
    augmentation: Literal["none", "light"] = "light"
    """Changes of gamma, sharpness and noise on training images."""


class Segmentor(nn.Module):
    """U-Net with residual blocks; skips are concatenated.

    It works below the image's resolution, where most of a U-Net's cost lies, and its head predicts every
    pixel of a position as a channel of its own (Shi et al., 2016, https://arxiv.org/abs/1609.05158).

    Attributes:
        mask_names: What the channels of the logits mean.

    Reference: Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597, with padded convolutions.
    """

    def __init__(self, config: SegmentorConfig, image_size: int) -> None:
        super().__init__()
        stride = config.stem_stride
        reduction = stride * 2 ** (len(config.widths) - 1)
        if image_size % reduction:
            raise ValueError(
                f"The image size ({image_size} px) must be divisible by "
                f"stem_stride × 2^(widths − 1) = {reduction}; use fewer widths or another image size."
            )
        self.image_size = image_size
        self.mask_names = config.masks
        widths = config.widths
        self.stem = nn.Conv2d(1, widths[0], 2 * stride + 1, stride, padding=stride)
        self.down = nn.ModuleList(
            _blocks(widths[max(level - 1, 0)], width, config.blocks, stride=2 if level else 1)
            for level, width in enumerate(widths)
        )
        self.grow = nn.ModuleList(Upsample(coarse, fine) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(_blocks(2 * width, width, config.blocks) for width in widths[:-1])
        self.norm = normalization(widths[0])
        self.head = nn.Conv2d(widths[0], len(self.mask_names) * stride**2, 3, padding=1)
        self.pixels = nn.PixelShuffle(stride)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B, M, H, W]`` (float32) of images ``[B, 1, H, W]`` in [-1, 1]."""
        require_images(image, self.image_size)
        hidden = self.stem(channels_last(image, self))
        skips = []
        for down in self.down:
            hidden = down(hidden)
            skips.append(hidden)
        for grow, up, skip in reversed(list(zip(self.grow, self.up, skips[:-1], strict=True))):
            hidden = up(torch.cat([grow(hidden), skip], dim=1))
        return torch.as_tensor(self.pixels(self.head(functional.silu(self.norm(hidden)))).float())

    def areas(
        self, image: Tensor, *, kind: Literal["thresholded", "soft"] = "thresholded"
    ) -> dict[str, Tensor]:
        """Area of each mask, ``[B]`` [px^2].

        Args:
            image: ``[B, 1, H, W]`` in [-1, 1].
            kind: ``thresholded`` counts pixels with probability over 0.5, to measure with; ``soft`` sums
                probabilities and is differentiable, to fine-tune with.
        """
        logits = self(image)
        inside = (logits > 0).float() if kind == "thresholded" else logits.sigmoid()
        return dict(zip(self.mask_names, inside.sum(dim=(2, 3)).unbind(1), strict=True))


def _blocks(channels_in: int, channels_out: int, count: int, *, stride: int = 1) -> nn.Sequential:
    rest = [ResidualBlock(channels_out, channels_out) for _ in range(count - 1)]
    return nn.Sequential(ResidualBlock(channels_in, channels_out, stride=stride), *rest)


def dice_loss(logits: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """One minus the soft Dice coefficient, mean over the masks that are present; 0 where none is.

    ``1 − (2 Σ p m + 1) / (Σ p + Σ m + 1)`` over each image's pixels; the 1 [px] keeps an empty mask (no
    heart in the field of view) defined.
    Reference: Milletari et al., 2016, https://arxiv.org/abs/1606.04797, section 3, without the squares.

    Args:
        logits: ``[B, M, H, W]``.
        masks: ``[B, M, H, W]`` in {0, 1}; anything where not present.
        present: ``[B, M]`` bool.
    """
    probability = logits.float().sigmoid()
    masks = torch.where(present[:, :, None, None], masks, torch.zeros_like(masks))
    overlap = (probability * masks).sum(dim=(2, 3))
    total = probability.sum(dim=(2, 3)) + masks.sum(dim=(2, 3))
    each = 1 - (2 * overlap + 1) / (total + 1)
    return (each * present).sum() / present.sum().clamp(min=1)


def dice(predicted: Tensor, masks: Tensor) -> Tensor:
    """Dice coefficient of binary masks, ``2 |A ∩ B| / (|A| + |B|)``, ``[...]``; 1 is best.

    Two empty masks agree and give 1.

    Args:
        predicted: ``[..., H, W]`` in {0, 1}.
        masks: ``[..., H, W]`` in {0, 1}.
    """
    overlap = (predicted * masks).sum(dim=(-2, -1))
    total = predicted.sum(dim=(-2, -1)) + masks.sum(dim=(-2, -1))
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), torch.ones_like(total))


def masks_of(batch: Batch, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Masks ``[B, M, H, W]`` in {0, 1} and a bool tensor ``[B, M]`` of those that are present.

    Raises:
        ValueError: If the batch carries no mask of that name.
    """
    chosen(names, sorted(batch.masks), setting="masks", what="masks")
    masks = torch.cat([batch.masks[name] for name in names], dim=1).float()
    present = ~torch.isnan(masks).any(dim=3).any(dim=2)
    return torch.where(present[:, :, None, None], masks, torch.zeros_like(masks)), present


class SegmentorStage(PredictorStage):
    """Trains a `Segmentor` with Dice and binary cross-entropy over the masks that images have."""

    name = "segmentor"
    monitor = "dice_mean"
    direction = "max"

    def __init__(self, config: SegmentorConfig) -> None:
        super().__init__()
        self.config = config
        self.needs_masks = config.masks
        self._data: DatasetInfo | None = None

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> nn.Module:
        """A fresh U-Net.

        Raises:
            ValueError: If the dataset lacks a mask.
        """
        chosen(self.config.masks, data.mask_names, setting="masks", what="masks")
        self._data = data
        return Segmentor(self.config, data.image_size)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """Binary cross-entropy per pixel plus the Dice loss, over the masks that are present."""
        masks, present = masks_of(batch, self.config.masks)
        image = vary_exposure(batch.image) if self.config.augmentation == "light" else batch.image
        logits = module(image)
        pixels = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=(2, 3))
        cross_entropy = (pixels * present).sum() / present.sum().clamp(min=1)
        overlap = dice_loss(logits, masks, present)
        total = cross_entropy + self.config.dice_weight * overlap
        return Losses(total, {"cross_entropy": cross_entropy.detach(), "dice": overlap.detach()})

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Dice coefficients and area errors of thresholded masks.

        Returns:
            ``dice.<mask>`` (mean over images; 1 is best), ``dice_mean`` over the masks, and
            ``area_error.<mask>``: the median of ``|area − true area| / true area`` over images whose true
            area is not 0 (0 is best; left out where there is none).

        Raises:
            ValueError: If no validation image has any of the masks.
        """
        scores: dict[str, list[Tensor]] = {name: [] for name in self.config.masks}
        errors: dict[str, list[Tensor]] = {name: [] for name in self.config.masks}
        with evaluating(module):
            for batch in batches:
                masks, present = masks_of(batch, self.config.masks)
                predicted = (module(batch.image) > 0).float()
                for channel, name in enumerate(self.config.masks):
                    rows = present[:, channel]
                    ours, truth = predicted[rows, channel], masks[rows, channel]
                    scores[name].append(dice(ours, truth))
                    area, true_area = ours.sum(dim=(1, 2)), truth.sum(dim=(1, 2))
                    seen = true_area > 0
                    errors[name].append(((area - true_area).abs() / true_area)[seen])
        return _summary(scores, errors)

    def export(self, module: nn.Module) -> Export:
        """Weights and settings; the masks' order is the settings'."""
        return export(
            module,
            self.config,
            require_built(self._data),
            intended_use="Outlines organs in radiographs and measures their areas, to supervise or to judge "
            "generated images.",
            limits="Not a medical device. Valid for the training data's masks, views and image size only.",
        )


def _summary(scores: Mapping[str, list[Tensor]], errors: Mapping[str, list[Tensor]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in scores:
        values, relative = torch.cat(scores[name]), torch.cat(errors[name])
        if len(values):
            metrics[f"dice.{name}"] = float(values.mean())
        if len(relative):
            metrics[f"area_error.{name}"] = float(relative.median())
    means = [value for name, value in metrics.items() if name.startswith("dice.")]
    if not means:
        raise ValueError(
            f"No validation image has any of the masks {', '.join(scores)}, so no Dice is defined. Put "
            "images with masks into the validation split or choose other masks."
        )
    return {"dice_mean": sum(means) / len(means), **metrics}


def rebuild(metadata: Mapping[str, Any]) -> Segmentor:
    """The segmentor that a bundle's metadata describes, without its weights."""
    return Segmentor(SegmentorConfig.model_validate(metadata["config"]), int(metadata["image_size"]))
