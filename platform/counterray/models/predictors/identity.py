"""The identity encoder: features in which two images of one patient lie close, whatever their findings."""

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
from counterray.models.predictors.augmentation import augment, paint_lesions
from counterray.models.predictors.common import (
    PredictorStage,
    evaluating,
    export,
    repeatable,
    require_built,
)
from counterray.models.predictors.retrieval import mean_reciprocal_rank, ranks, recall
from counterray.nn.backbone import Backbone, BackboneConfig
from counterray.training.stage import Export, Losses, StageConfig


class IdentityEncoderConfig(StageConfig):
    """Settings of the identity encoder."""

    stage: Literal["identity_encoder"] = "identity_encoder"
    """Name of the stage."""
    backbone: BackboneConfig = BackboneConfig()
    """The image network."""
    dimensions: int = Field(default=64, ge=2)
    """Number of identity features."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the contrastive softmax over cosines; Khosla et al. use 0.1."""
    lesions: int = Field(default=2, ge=0)
    """Random spots painted onto each view, so that local pathology does not become identity."""


class IdentityEncoder(nn.Module):
    """Image to a point on the unit sphere."""

    def __init__(self, config: IdentityEncoderConfig, image_size: int) -> None:
        super().__init__()
        self.backbone = Backbone(config.backbone, image_size)
        self.hidden = nn.Linear(self.backbone.width, self.backbone.width)
        self.projection = nn.Linear(self.backbone.width, config.dimensions)

    def forward(self, image: Tensor) -> Tensor:
        """Identity features ``[B, D]`` (float32, unit length) of images ``[B, 1, H, W]`` in [-1, 1]."""
        hidden = functional.silu(self.hidden(self.backbone(image)))
        return functional.normalize(self.projection(hidden).float(), dim=1)

    def features(self, image: Tensor) -> Tensor:
        """The same as `forward`: smooth in the image, squared distances in [0, 4]."""
        return torch.as_tensor(self(image))


def supervised_contrastive(features: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss over unit features, mean over anchors that have a positive.

    ``− 1/|P(i)| Σ_{p∈P(i)} log( exp(z_i·z_p/τ) / Σ_{a≠i} exp(z_i·z_a/τ) )``, with P(i) the other members of
    i's group. With two views per image and no other positives it is NT-Xent.
    Reference: Khosla et al., 2020, https://arxiv.org/abs/2004.11362, equation 2.

    Args:
        features: ``[N, D]`` of unit length.
        groups: ``[N]`` integers; equal means positive.
        temperature: τ.
    """
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    similarity = (features @ features.T / temperature).masked_fill(itself, float("-inf"))
    log_share = similarity.log_softmax(dim=1)
    positive = (groups[:, None] == groups[None, :]) & ~itself
    # The anchor itself has log share −inf, and −inf · 0 is not a number.
    sums = torch.where(positive, log_share, torch.zeros_like(log_share)).sum(1)
    counts = positive.sum(1)
    return -(sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


class IdentityEncoderStage(PredictorStage):
    """Trains an `IdentityEncoder`: two augmented views of each image, all of a patient's attract each other.

    Attraction and repulsion are within a batch, on one worker. Where batches are drawn image by image, a
    patient's other images are hardly ever in it, and what changes between visits (findings, scanner) then
    stays in the features but for what the augmentation covers; batches that keep patients together cure it.
    """

    name = "identity_encoder"
    monitor = "mrr"
    direction = "max"

    def __init__(self, config: IdentityEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self._data: DatasetInfo | None = None

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> nn.Module:
        """A fresh encoder."""
        self._data = data
        return IdentityEncoder(self.config, data.image_size)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """Supervised contrastive loss over both views of the batch."""
        if len(batch) < 2:
            raise ValueError(
                f"The batch has {len(batch)} image; a contrastive loss needs 2 or more. Raise the batch size."
            )
        views = torch.cat([self._view(batch.image), self._view(batch.image)])
        patients = _patients(batch)
        codes = {patient: code for code, patient in enumerate(dict.fromkeys(patients))}
        groups = torch.tensor([codes[patient] for patient in patients], device=views.device)
        total = supervised_contrastive(module(views), groups.repeat(2), self.config.temperature)
        return Losses(total, {"contrastive": total.detach()})

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Retrieval among all validation images.

        Returns:
            ``view_rank1``, ``view_mrr``, ``view_queries``: one augmented view of an image finds the other
            view of it. ``reid_rank1``, ``reid_mrr``, ``reid_queries``: an image, as it is, finds another of
            its patient; left out where every patient has one image. ``mrr``: ``reid_mrr`` where there is
            one, else ``view_mrr``. All depend on the size of the gallery, ``gallery``.
        """
        plain, first, second = [], [], []
        patients: list[str] = []
        with evaluating(module), repeatable():
            for batch in batches:
                plain.append(module(batch.image))
                first.append(module(self._view(batch.image)))
                second.append(module(self._view(batch.image)))
                patients += _patients(batch, first=len(patients))
        images = [str(index) for index in range(len(patients))]
        one, two, whole = torch.cat(first), torch.cat(second), torch.cat(plain)
        found = {
            "view": ranks(one, two, images, images),
            "reid": ranks(whole, whole, patients, patients, exclude_self=True),
        }
        metrics: dict[str, float] = {}
        for kind, positions in found.items():
            if len(positions):
                metrics[f"{kind}_rank1"] = recall(positions, 1)
                metrics[f"{kind}_mrr"] = mean_reciprocal_rank(positions)
                metrics[f"{kind}_queries"] = float(len(positions))
        best = metrics.get("reid_mrr", metrics["view_mrr"])
        return {"mrr": best, "gallery": float(len(images)), **metrics}

    def export(self, module: nn.Module) -> Export:
        """Weights and settings."""
        return export(
            module,
            self.config,
            require_built(self._data),
            intended_use="Tells whether an edited image still shows the same patient, to supervise or to "
            "judge generated images.",
            limits="Not for identifying people. Trained to look past local pathology, not past all of it; "
            "valid for the training data's views and image size only.",
        )

    def _view(self, image: Tensor) -> Tensor:
        return augment(paint_lesions(image, count=self.config.lesions))


def _patients(batch: Batch, *, first: int = 0) -> tuple[str, ...]:
    """Patient of each image; every image is its own, counted from ``first``, where the batch names none."""
    return batch.patient_ids or tuple(str(index) for index in range(first, first + len(batch)))


def load(bundle: Bundle) -> IdentityEncoder:
    """The trained encoder of an `identity_encoder` bundle, frozen and in evaluation mode.

    Raises:
        BundleError: If the bundle is another stage's.
    """
    bundle.expect(IdentityEncoderStage.name)
    encoder = rebuild(bundle.metadata)
    encoder.load_state_dict(bundle.tensors())
    return encoder.eval().requires_grad_(False)


def rebuild(metadata: Mapping[str, Any]) -> IdentityEncoder:
    """The encoder that a bundle's metadata describes, without its weights."""
    config = IdentityEncoderConfig.model_validate(metadata["config"])
    return IdentityEncoder(config, int(metadata["image_size"]))
