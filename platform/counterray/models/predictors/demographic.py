"""The demographic classifier: what an image gives away of sex, group, scanner or site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterray.bundle import Bundle
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.models.predictors.augmentation import translate
from counterray.models.predictors.common import (
    PredictorStage,
    auroc,
    chosen,
    evaluating,
    export,
    require_built,
)
from counterray.nn.backbone import Backbone, BackboneConfig
from counterray.training.stage import Export, Losses, StageConfig


class DemographicConfig(StageConfig):
    """Settings of the demographic classifier."""

    stage: Literal["demographic"] = "demographic"
    """Name of the stage."""
    backbone: BackboneConfig = BackboneConfig()
    """The image network."""
    attributes: tuple[str, ...] = Field(default=("sex",), min_length=1)
    """Categorical attributes to predict, one head each."""
    augmentation: Literal["none", "light"] = "light"
    """Shifts by whole pixels on training images; anything else changes what scanners and sites differ by."""


class Demographic(nn.Module):
    """One backbone, one softmax head for each attribute.

    Attributes:
        vocabulary: Attribute to its values, in the order of the logits.
    """

    def __init__(
        self, config: DemographicConfig, vocabulary: Mapping[str, tuple[str, ...]], image_size: int
    ) -> None:
        super().__init__()
        self.vocabulary = {name: tuple(vocabulary[name]) for name in config.attributes}
        self.backbone = Backbone(config.backbone, image_size)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.backbone.width, len(values)) for name, values in self.vocabulary.items()}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Attribute to logits ``[B, K]`` (float32) of images ``[B, 1, H, W]`` in [-1, 1]."""
        hidden = self.backbone(image)
        return {name: head(hidden).float() for name, head in self.heads.items()}


def masked_cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean cross-entropy over the images whose class is known; 0 where none is.

    Args:
        logits: ``[B, K]``.
        codes: ``[B]`` float class codes, NaN where unknown.
    """
    known = ~torch.isnan(codes)
    classes = torch.where(known, codes, torch.zeros_like(codes)).long()
    each = functional.cross_entropy(logits, classes, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def attribute_metrics(logits: Tensor, codes: Tensor) -> dict[str, float]:
    """Accuracy and AUROC of one attribute among the images whose class is known.

    Args:
        logits: ``[N, K]``.
        codes: ``[N]`` float class codes, NaN where unknown.

    Returns:
        ``accuracy``, ``auroc`` (unweighted mean over classes of that class against the rest; for two classes
        the usual one; left out where only one class occurs) and ``classes`` (how many classes occur).
        Empty where no class is known.
    """
    known = ~torch.isnan(codes)
    if not bool(known.any()):
        return {}
    shares, classes = logits[known].softmax(1), codes[known].long()
    areas = [auroc(shares[:, code], (classes == code).long()) for code in range(logits.shape[1])]
    defined = [area for area in areas if area is not None]
    metrics = {
        "accuracy": float((shares.argmax(1) == classes).double().mean()),
        "classes": float(len(set(classes.tolist()))),
    }
    return metrics | ({"auroc": sum(defined) / len(defined)} if defined else {})


class DemographicStage(PredictorStage):
    """Trains a `Demographic` with cross-entropy over known attributes."""

    name = "demographic"
    monitor = "auroc_mean"
    direction = "max"

    def __init__(self, config: DemographicConfig) -> None:
        super().__init__()
        self.config = config
        self._data: DatasetInfo | None = None

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> nn.Module:
        """A fresh classifier.

        Raises:
            ValueError: If an attribute has fewer than two values in the dataset.
        """
        varied = [name for name, values in data.vocabulary.items() if len(values) > 1]
        chosen(
            self.config.attributes, varied, setting="attributes", what="attributes with two values or more"
        )
        self._data = data
        return Demographic(self.config, data.vocabulary, data.image_size)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """Sum over attributes of the masked cross-entropy."""
        image = translate(batch.image) if self.config.augmentation == "light" else batch.image
        logits = module(image)
        losses = {name: masked_cross_entropy(logits[name], self._codes(batch, name)) for name in logits}
        total = torch.stack(list(losses.values())).sum()
        return Losses(total, {name: loss.detach() for name, loss in losses.items()})

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """``auroc.<attribute>`` and the like, see `attribute_metrics`; ``auroc_mean`` over the attributes.

        Raises:
            ValueError: If no attribute has two values among the validation images.
        """
        logits: dict[str, list[Tensor]] = {name: [] for name in self.config.attributes}
        codes: dict[str, list[Tensor]] = {name: [] for name in self.config.attributes}
        with evaluating(module):
            for batch in batches:
                for name, values in module(batch.image).items():
                    logits[name].append(values)
                    codes[name].append(self._codes(batch, name))
        metrics = {
            f"{metric}.{name}": value
            for name in self.config.attributes
            for metric, value in attribute_metrics(torch.cat(logits[name]), torch.cat(codes[name])).items()
        }
        areas = [value for name, value in metrics.items() if name.startswith("auroc.")]
        if not areas:
            raise ValueError(
                f"None of the attributes {', '.join(self.config.attributes)} has two values among the "
                "validation images, so no AUROC is defined. Use a larger validation split."
            )
        return {"auroc_mean": sum(areas) / len(areas), **metrics}

    def export(self, module: nn.Module) -> Export:
        """Weights, settings and the attributes' values in the order of the logits."""
        data = require_built(self._data)
        return export(
            module,
            self.config,
            data,
            vocabulary={name: list(data.vocabulary[name]) for name in self.config.attributes},
            intended_use="Measures what radiographs give away of protected and technical attributes, to "
            "audit models and generated images.",
            limits="Not for identifying or sorting people. Valid for the training data's vocabulary, sites, "
            "views and image size only.",
        )

    def _codes(self, batch: Batch, name: str) -> Tensor:
        chosen((name,), sorted(batch.attributes), setting="attributes", what="attributes in the batch")
        return batch.attributes[name].to(batch.image.device)


def rebuild(metadata: Mapping[str, Any]) -> Demographic:
    """The classifier that a bundle's metadata describes, without its weights."""
    config = DemographicConfig.model_validate(metadata["config"])
    return Demographic(config, metadata["vocabulary"], int(metadata["image_size"]))
