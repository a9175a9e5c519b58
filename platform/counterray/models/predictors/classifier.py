"""The classifier: which findings an image shows, as independent probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterray.bundle import Bundle
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.models.predictors.augmentation import augment
from counterray.models.predictors.common import (
    PredictorStage,
    chosen,
    evaluating,
    export,
    finding_metrics,
    labels_of,
    require_built,
)
from counterray.nn.backbone import Backbone, BackboneConfig
from counterray.training.stage import Export, Losses, StageConfig


class ClassifierConfig(StageConfig):
    """Settings of the classifier."""

    stage: Literal["classifier"] = "classifier"
    """Name of the stage."""
    backbone: BackboneConfig = BackboneConfig()
    """The image network."""
    findings: tuple[str, ...] | None = None
    """Findings to predict; all that the dataset labels where null."""
    augmentation: Literal["none", "light"] = "light"
    """Small shifts, rotations, gamma and noise on training images."""
    positive_weight: Literal["none", "balanced"] = "none"
    """``balanced`` weighs a batch's positives of a finding by its negatives over its positives."""
    positive_weight_limit: float = Field(default=10.0, ge=1.0)
    """Largest weight under ``balanced``, so that a finding under 10 % does not drown the others."""


class Classifier(nn.Module):
    """Multi-label classifier.

    Attributes:
        finding_names: What the columns of the logits mean.
    """

    def __init__(self, config: ClassifierConfig, finding_names: Sequence[str], image_size: int) -> None:
        super().__init__()
        self.finding_names = tuple(finding_names)
        self.backbone = Backbone(config.backbone, image_size)
        self.head = nn.Linear(self.backbone.width, len(self.finding_names))

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B, F]`` (float32) of images ``[B, 1, H, W]`` in [-1, 1]."""
        return torch.as_tensor(self.head(self.backbone(image)).float())

    def features(self, image: Tensor) -> list[Tensor]:
        """Feature maps ``[B, C, H, W]`` of each stage, fine to coarse: what perceptual distances compare."""
        return self.backbone.maps(image)

    def embedding(self, image: Tensor) -> Tensor:
        """Pooled features ``[B, D]`` (float32) below the head: what Fréchet and kernel distances compare."""
        return torch.as_tensor(self.backbone(image).float())


def masked_binary_cross_entropy(
    logits: Tensor, labels: Tensor, known: Tensor, positive_weight: Tensor | None = None
) -> Tensor:
    """Mean binary cross-entropy over the known labels; 0 where a batch knows none.

    Args:
        logits: ``[B, F]``.
        labels: ``[B, F]`` in {0, 1}.
        known: ``[B, F]`` bool.
        positive_weight: ``[F]`` factor on the loss of positives, or ``None`` for 1.
    """
    each = functional.binary_cross_entropy_with_logits(
        logits.float(), labels, pos_weight=positive_weight, reduction="none"
    )
    return (each * known).sum() / known.sum().clamp(min=1)


def balanced_weight(labels: Tensor, known: Tensor, limit: float) -> Tensor:
    """Negatives over positives among a batch's known labels, ``[F]`` in [1, limit].

    It is taken per batch, as a stage knows no statistics of its data: the weight is a noisy estimate of the
    data set's where a finding is rare, hence the limit.
    """
    positives = (labels * known).sum(0)
    negatives = ((1 - labels) * known).sum(0)
    return (negatives / positives.clamp(min=1)).clamp(1.0, limit)


class ClassifierStage(PredictorStage):
    """Trains a `Classifier` with masked binary cross-entropy."""

    name = "classifier"
    monitor = "auroc_macro"
    direction = "max"

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.finding_names: tuple[str, ...] = ()
        self._data: DatasetInfo | None = None

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> nn.Module:
        """A fresh classifier of the chosen findings."""
        self.finding_names = chosen(
            self.config.findings, data.finding_names, setting="findings", what="findings"
        )
        self._data = data
        return Classifier(self.config, self.finding_names, data.image_size)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """Masked binary cross-entropy."""
        labels, known = labels_of(batch, self.finding_names)
        image = augment(batch.image) if self.config.augmentation == "light" else batch.image
        weight = None
        if self.config.positive_weight == "balanced":
            weight = balanced_weight(labels, known, self.config.positive_weight_limit)
        total = masked_binary_cross_entropy(module(image), labels, known, weight)
        return Losses(total, {"cross_entropy": total.detach()})

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """AUROC by finding and their mean, see `finding_metrics`; and the mean cross-entropy."""
        scores, labels, known = [], [], []
        with evaluating(module):
            for batch in batches:
                batch_labels, batch_known = labels_of(batch, self.finding_names)
                scores.append(module(batch.image))
                labels.append(batch_labels)
                known.append(batch_known)
        logits, truth, counts = torch.cat(scores), torch.cat(labels), torch.cat(known)
        cross_entropy = float(masked_binary_cross_entropy(logits, truth, counts))
        return {
            **finding_metrics(logits, truth, counts, self.finding_names),
            "cross_entropy": cross_entropy,
        }

    def export(self, module: nn.Module) -> Export:
        """Weights, settings and the findings' order."""
        return export(
            module,
            self.config,
            require_built(self._data),
            finding_names=list(self.finding_names),
            intended_use="Scores findings in radiographs, to supervise or to judge generated images.",
            limits="Not a medical device. Probabilities are not calibrated; valid for the training data's "
            "sites, views and image size only.",
        )


def rebuild(metadata: Mapping[str, Any]) -> Classifier:
    """The classifier that a bundle's metadata describes, without its weights."""
    config = ClassifierConfig.model_validate(metadata["config"])
    return Classifier(config, metadata["finding_names"], int(metadata["image_size"]))
