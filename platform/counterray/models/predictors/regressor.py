"""The regressor: age and other numbers, read from an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from counterray.bundle import Bundle
from counterray.config import Config
from counterray.data.dataset import DatasetInfo
from counterray.data.study import ATTRIBUTES, Batch
from counterray.models.predictors.augmentation import augment
from counterray.models.predictors.common import (
    PredictorStage,
    chosen,
    evaluating,
    export,
    require_built,
)
from counterray.nn.backbone import Backbone, BackboneConfig
from counterray.training.stage import Export, Losses, StageConfig


class RegressionTarget(Config):
    """A number to predict, and the scale on which errors of it count alike."""

    name: str
    """``age`` [years], or the name of a measurement in its own unit."""
    mean: float
    """About its mean in the data; the prediction of an untrained network."""
    deviation: float = Field(gt=0)
    """About its standard deviation in the data: an error of that size costs as much for every target."""


class RegressorConfig(StageConfig):
    """Settings of the regressor.

    Means and deviations are settings and no statistics of the data that the network gathers: they need not
    be exact, and so nothing but weights has to be checkpointed, averaged or shared between workers.
    """

    stage: Literal["regressor"] = "regressor"
    """Name of the stage."""
    backbone: BackboneConfig = BackboneConfig()
    """The image network."""
    targets: tuple[RegressionTarget, ...] = Field(
        default=(RegressionTarget(name="age", mean=50.0, deviation=20.0),), min_length=1
    )
    """The numbers to predict."""
    augmentation: Literal["none", "light"] = "none"
    """``light``: small shifts, rotations, size changes, gamma and noise; not for areas, which they change."""

    @model_validator(mode="after")
    def _distinct(self) -> RegressorConfig:
        names = [target.name for target in self.targets]
        if len(set(names)) < len(names):
            raise ValueError(f"targets {names} name a target twice")
        return self


class Regressor(nn.Module):
    """Image to numbers in their own units.

    Attributes:
        target_names: What the columns of the prediction mean.
    """

    def __init__(self, config: RegressorConfig, image_size: int) -> None:
        super().__init__()
        self.targets = config.targets
        self.target_names = tuple(target.name for target in config.targets)
        self.backbone = Backbone(config.backbone, image_size)
        self.head = nn.Linear(self.backbone.width, len(config.targets))

    def forward(self, image: Tensor) -> Tensor:
        """Predictions ``[B, R]`` (float32, the targets' units) of images ``[B, 1, H, W]`` in [-1, 1]."""
        standard = self.head(self.backbone(image)).float()
        means, deviations = _scale(self.targets, standard)
        return torch.as_tensor(means + deviations * standard)


def _scale(targets: tuple[RegressionTarget, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations ``[R]`` (float32) on the device of ``like``."""
    means = torch.tensor([target.mean for target in targets], device=like.device)
    return means, torch.tensor([target.deviation for target in targets], device=like.device)


def targets_of(batch: Batch, names: tuple[str, ...]) -> Tensor:
    """The named numbers ``[B, R]`` (float32), NaN where unknown.

    Raises:
        ValueError: If the batch has no such attribute or measurement.
    """
    numbers = {**batch.measurements, **{k: v for k, v in batch.attributes.items() if _continuous(k)}}
    chosen(names, sorted(numbers), setting="targets", what="numbers")
    return torch.stack([numbers[name].float() for name in names], dim=1)


def _continuous(attribute: str) -> bool:
    return ATTRIBUTES.get(attribute) == "continuous"


def masked_smooth_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """Huber loss (quadratic below 1, linear above), mean over targets that are known; 0 where none is.

    Args:
        predicted: ``[B, R]`` in deviations from the mean.
        target: ``[B, R]`` in deviations from the mean, NaN where unknown.
    """
    known = ~torch.isnan(target)
    each = functional.smooth_l1_loss(
        predicted, torch.where(known, target, predicted.detach()), reduction="none"
    )
    return each.sum() / known.sum().clamp(min=1)


class RegressorStage(PredictorStage):
    """Trains a `Regressor` with a Huber loss over known targets."""

    name = "regressor"
    monitor = "r2_mean"
    direction = "max"

    def __init__(self, config: RegressorConfig) -> None:
        super().__init__()
        self.config = config
        self._names = tuple(target.name for target in config.targets)
        self._data: DatasetInfo | None = None

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> nn.Module:
        """A fresh regressor.

        Raises:
            ValueError: If a target is neither age nor a measurement of the dataset.
        """
        chosen(self._names, ("age", *data.measurement_names), setting="targets", what="numbers")
        self._data = data
        return Regressor(self.config, data.image_size)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """Huber loss of the standardised error."""
        target = targets_of(batch, self._names).to(batch.image.device)
        image = augment(batch.image) if self.config.augmentation == "light" else batch.image
        predicted = module(image)
        means, deviations = _scale(self.config.targets, predicted)
        total = masked_smooth_l1((predicted - means) / deviations, (target - means) / deviations)
        return Losses(total, {"huber": total.detach()})

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Errors in natural units.

        Returns:
            ``mae.<target>`` (mean absolute error in the target's unit; 0 is best), ``r2.<target>`` (share of
            variance explained, ``1 − Σ(y − ŷ)² / Σ(y − ȳ)²``; 1 is best, 0 is a constant; left out where
            the target does not vary) and ``r2_mean`` over the targets.

        Raises:
            ValueError: If no target varies among the validation images.
        """
        predicted, target = [], []
        with evaluating(module):
            for batch in batches:
                predicted.append(module(batch.image))
                target.append(targets_of(batch, self._names).to(batch.image.device))
        ours, truth = torch.cat(predicted).double(), torch.cat(target).double()
        metrics: dict[str, float] = {}
        explained: dict[str, float] = {}
        for column, name in enumerate(self._names):
            known = ~torch.isnan(truth[:, column])
            values, error = truth[known, column], (ours - truth)[known, column]
            if len(values):
                metrics[f"mae.{name}"] = float(error.abs().mean())
            spread = float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
            if spread > 0:
                explained[f"r2.{name}"] = 1 - float((error**2).sum()) / spread
        if not explained:
            raise ValueError(
                f"None of the targets {', '.join(self._names)} varies among {len(truth)} validation images, "
                "so no R² is defined. Use a larger validation split or other targets."
            )
        return {"r2_mean": sum(explained.values()) / len(explained), **explained, **metrics}

    def export(self, module: nn.Module) -> Export:
        """Weights and settings; the targets' order is the settings'."""
        return export(
            module,
            self.config,
            require_built(self._data),
            intended_use="Reads numbers such as age out of radiographs, to supervise or to judge generated "
            "images.",
            limits="Not a medical device. Valid for the training data's sites, views and image size only.",
        )


def rebuild(metadata: Mapping[str, Any]) -> Regressor:
    """The regressor that a bundle's metadata describes, without its weights."""
    return Regressor(RegressorConfig.model_validate(metadata["config"]), int(metadata["image_size"]))
