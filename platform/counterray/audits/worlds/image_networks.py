"""Parts of image classifiers of known truth: a network, a reader of the attribute, a head without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from counterray.audits.worlds.level_images import LevelImages
from counterray.bundle import Bundle
from counterray.config import Config
from counterray.data.dataset import DatasetInfo
from counterray.data.phantom.scm import VOCABULARY
from counterray.data.study import Batch
from counterray.evaluation.intervals import Floats
from counterray.models.predictors.classifier import Classifier, ClassifierConfig, ClassifierStage
from counterray.nn.backbone import BackboneConfig
from counterray.training.loop import train

THUMBNAIL = 8
"""Edge of the thumbnail that heads see [px]: enough for a tint from side to side."""

AT_ONCE = 128
"""Images in a forward pass."""

_READER_STEPS = 3
"""Times as many steps as for a finding: levels of an attribute are harder to see."""


class NetworkConfig(Config):
    """How the networks of image worlds are made and trained."""

    backbone: BackboneConfig = BackboneConfig()
    """The image network."""
    steps: int = Field(default=400, ge=1)
    """Optimizer steps of each network."""
    batch_size: int = Field(default=64, ge=2)
    """Images of a step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Of Adam, constant."""


class ThumbnailClassifier(Classifier):
    """A classifier whose head also sees a standardised thumbnail.

    Averaged over space, a convolutional network hardly sees a faint tint from one side to the other; a
    thumbnail shows it, as the edge of a large field of view would.
    """

    def __init__(self, config: ClassifierConfig, finding_names: Sequence[str], image_size: int) -> None:
        super().__init__(config, finding_names, image_size)
        self.standard = nn.BatchNorm1d(THUMBNAIL**2, affine=False)
        self.head = nn.Linear(self.backbone.width + THUMBNAIL**2, len(self.finding_names))

    def embedding(self, image: Tensor) -> Tensor:
        """Pooled features and thumbnail ``[B, D]``."""
        small = functional.adaptive_avg_pool2d(image.float(), THUMBNAIL).flatten(1)
        return torch.cat([super().embedding(image), torch.as_tensor(self.standard(small))], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B, F]`` of images ``[B, 1, H, W]`` in [-1, 1]."""
        return torch.as_tensor(self.head(self.embedding(image)))


class _ThumbnailStage(ClassifierStage):
    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> nn.Module:
        super().build(inputs, data)
        return ThumbnailClassifier(self.config, self.finding_names, data.image_size)


def fit_network(
    batch: Batch, findings: Sequence[str], config: NetworkConfig, *, seed: int
) -> ThumbnailClassifier:
    """A network trained on a batch; equal seeds give equal networks, and torch's own state stays."""
    stage = _ThumbnailStage(
        # A gamma or noise of its own would hide the very traces that are to be planted.
        ClassifierConfig(backbone=config.backbone, findings=tuple(findings), augmentation="none")
    )
    data = DatasetInfo(
        image_size=batch.image.shape[-1], finding_names=batch.finding_names, vocabulary=VOCABULARY
    )
    lean = replace(batch, masks={}, measurements={}, reports=(), image_ids=(), patient_ids=())
    shuffle = torch.Generator().manual_seed(seed)

    def epoch() -> Iterator[Batch]:
        order = torch.randperm(len(lean), generator=shuffle)
        size = min(config.batch_size, len(lean))
        for start in range(0, len(lean) - size + 1, size):
            yield lean.select(order[start : start + size])

    with torch.random.fork_rng(devices=[]):
        module = train(
            stage,
            data=data,
            batches=epoch,
            steps=config.steps,
            learning_rate=config.learning_rate,
            seed=seed,
        )
    return cast(ThumbnailClassifier, module)


@torch.no_grad()
def applied(function: Any, image: Tensor) -> Floats:
    """A network's function of images, some at a time, as float64."""
    parts = [function(part).double() for part in image.split(AT_ONCE)]  # type: ignore[no-untyped-call]
    return np.asarray(torch.cat(parts).numpy())


@dataclass(frozen=True)
class Reader:
    """Reads an attribute out of an image: a network that learned it as any shortcut is learned.

    It sees each individual once, at a level drawn at random, never two levels of the same one: what tells
    them apart only in pairs, which no classifier of patients is shown, is no part of it.

    Attributes:
        network: Its outputs are the attribute's levels.
    """

    network: ThumbnailClassifier

    @classmethod
    def fit(cls, batch: Batch, attribute: str, config: NetworkConfig, *, seed: int) -> Reader:
        """Fitted to individuals whose levels follow nothing else."""
        levels = VOCABULARY[attribute]
        codes = batch.attributes[attribute].long()
        shown = functional.one_hot(codes, len(levels)).to(batch.findings)
        named = replace(batch, findings=shown, finding_names=levels)
        longer = config.model_copy(update={"steps": _READER_STEPS * config.steps})
        return cls(fit_network(named, levels, longer, seed=seed))

    def reading(self, image: Tensor, level: int) -> Floats:
        """``2 P(level | image) - 1`` ``[N]``: 1 where the level is read, -1 where another is."""
        logits = applied(self.network, image)
        return np.asarray(2 * softmax(logits, axis=1)[:, level] - 1)


@dataclass(frozen=True)
class ExcludedHead:
    """A head on a network's features from which the directions that an attribute moves are taken away.

    Attributes:
        keep: ``[D, D]`` projection onto what is left.
        models: Finding to its logistic regression.
    """

    keep: Floats
    models: Mapping[str, Any]

    @classmethod
    def fit(
        cls, network: ThumbnailClassifier, individuals: LevelImages, findings: Sequence[str], *, share: float
    ) -> ExcludedHead:
        """Fitted to individuals at all levels.

        Deviations of each individual's features from their mean over levels are what the attribute does; the
        leading principal directions of theirs that hold ``share`` of their squares are removed.

        Args:
            network: Whose features.
            individuals: Training individuals.
            findings: To predict.
            share: Of the squared deviations to remove, below 1; the rest is what the head may still lean on.

        Reference: as Ravfogel et al., 2020, https://arxiv.org/abs/2004.07667, project out what tells an
            attribute; from paired counterfactuals in place of a classifier's weights.
        """
        features = np.stack([applied(network.embedding, image) for image in individuals.images])  # [K, N, D]
        deviations = (features - features.mean(axis=0)).reshape(-1, features.shape[-1])
        values, directions = np.linalg.eigh(deviations.T @ deviations)
        held = np.cumsum(values[::-1]) / values.sum()
        removed = directions[:, ::-1][:, : int(np.searchsorted(held, share)) + 1]
        keep = np.eye(len(values)) - removed @ removed.T
        labels = individuals.batch.findings.numpy() > 0.5
        kept = features.reshape(-1, features.shape[-1]) @ keep
        models = {}
        for finding in findings:
            truth = labels[:, individuals.batch.finding_names.index(finding)]
            model = LogisticRegression(C=0.1, max_iter=5000)
            models[finding] = model.fit(kept, np.tile(truth, len(features)))
        return cls(keep, models)

    def logits(self, features: Floats, finding: str) -> Floats:
        """Logits ``[N]`` of a finding from features ``[N, D]``."""
        found: Floats = self.models[finding].decision_function(features @ self.keep)
        return found
