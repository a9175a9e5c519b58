"""The one list to extend: which stages there are, how they are configured, and which paper they are from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pydantic
from torch import nn

from counterray.bundle import Bundle
from counterray.config import ConfigError, read, validate
from counterray.models.gsvae import stages as gsvae
from counterray.models.mine_ldm import perturbation_stage as mine_perturbation
from counterray.models.mine_ldm import stages as mine_ldm
from counterray.models.mine_ldm import vae_stage as mine_vae
from counterray.models.pathology_ldm import stages as pathology_ldm
from counterray.models.predictors import (
    classifier,
    demographic,
    identity,
    image_text,
    load_judge,
    regressor,
    segmentor,
)
from counterray.training.config import TrainingConfig
from counterray.training.stage import Stage, StageConfig


@dataclass(frozen=True)
class Entry:
    """A stage that can be trained.

    Attributes:
        method: The method that it belongs to; its folder in ``models/``.
        config: Its settings.
        stage: Makes it from its settings.
        load: Rebuilds the trained module from a bundle, frozen and in evaluation mode.
        reference: The paper that it implements.
    """

    method: str
    config: type[StageConfig]
    stage: Callable[[Any], Stage]
    load: Callable[[Bundle], nn.Module]
    reference: str


CATALOG: Mapping[str, Entry] = {
    "classifier": Entry(
        "predictors",
        classifier.ClassifierConfig,
        classifier.ClassifierStage,
        load_judge,
        "He et al., 2016, https://arxiv.org/abs/1603.05027",
    ),
    "segmentor": Entry(
        "predictors",
        segmentor.SegmentorConfig,
        segmentor.SegmentorStage,
        load_judge,
        "Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597",
    ),
    "regressor": Entry(
        "predictors",
        regressor.RegressorConfig,
        regressor.RegressorStage,
        load_judge,
        "He et al., 2016, https://arxiv.org/abs/1603.05027",
    ),
    "demographic": Entry(
        "predictors",
        demographic.DemographicConfig,
        demographic.DemographicStage,
        load_judge,
        "He et al., 2016, https://arxiv.org/abs/1603.05027",
    ),
    "identity_encoder": Entry(
        "predictors",
        identity.IdentityEncoderConfig,
        identity.IdentityEncoderStage,
        load_judge,
        "Khosla et al., 2020, https://arxiv.org/abs/2004.11362",
    ),
    "image_text_encoder": Entry(
        "predictors",
        image_text.ImageTextEncoderConfig,
        image_text.ImageTextEncoderStage,
        load_judge,
        "Radford et al., 2021, https://arxiv.org/abs/2103.00020",
    ),
    "gsvae": Entry(
        "gsvae",
        gsvae.GSVAEConfig,
        gsvae.GSVAEStage,
        gsvae.load,
        "Nie et al., Causal Disentanglement for Robust Long-tail Medical Image Generation, stage 1",
    ),
    "pathology_ldm": Entry(
        "pathology_ldm",
        pathology_ldm.PathologyLDMConfig,
        pathology_ldm.PathologyLDMStage,
        pathology_ldm.load,
        "Nie et al., Causal Disentanglement for Robust Long-tail Medical Image Generation, stage 2",
    ),
    "mine_vae": Entry(
        "mine_ldm",
        mine_vae.MineVAEConfig,
        mine_vae.MineVAEStage,
        mine_vae.load_vae,
        "Ma et al., 2025, https://arxiv.org/abs/2504.19621; told attributes: Higgins et al., 2017",
    ),
    "mine_perturbation": Entry(
        "mine_ldm",
        mine_perturbation.MinePerturbationConfig,
        mine_perturbation.MinePerturbationStage,
        mine_perturbation.load_perturbation,
        "Ma et al., 2025, https://arxiv.org/abs/2504.19621; Belghazi et al., 2018",
    ),
    "mine_ldm": Entry(
        "mine_ldm",
        mine_ldm.MineLDMConfig,
        mine_ldm.MineLDMStage,
        mine_ldm.load,
        "Ma et al., 2025, https://arxiv.org/abs/2504.19621",
    ),
}
"""Stage name to its entry."""


def entry(name: str) -> Entry:
    """The entry of a stage.

    Raises:
        ConfigError: If there is none of that name, with those that exist.
    """
    if name not in CATALOG:
        raise ConfigError(f"Unknown stage {name!r}. Available: {', '.join(sorted(CATALOG))}.")
    return CATALOG[name]


def load_model(bundle: Bundle) -> nn.Module:
    """The trained module of any bundle, frozen and in evaluation mode."""
    return entry(bundle.stage).load(bundle).eval().requires_grad_(False)


@functools.cache
def training_schema(name: str) -> type[TrainingConfig]:
    """Schema of a training YAML for a stage: the stage's own settings beside the run's, on one level."""
    bases: tuple[Any, ...] = (entry(name).config, TrainingConfig)
    schema = pydantic.create_model(f"{entry(name).config.__name__}Training", __base__=bases)
    return cast("type[TrainingConfig]", schema)


def read_training(path: str | Path | None, overrides: Sequence[str] = ()) -> tuple[Stage, TrainingConfig]:
    """Reads a training YAML.

    Returns:
        The stage, not built, and the settings of the run (with the stage's among them).

    Raises:
        ConfigError: If the file names no stage or an unknown one, or a setting is unknown or refused.
    """
    return make_training(read(path, overrides))


def make_training(values: Mapping[str, Any]) -> tuple[Stage, TrainingConfig]:
    """Makes stage and settings from plain values; see `read_training`."""
    name = values.get("stage")
    if not isinstance(name, str):
        raise ConfigError(f"A training config must name its stage. Available: {', '.join(sorted(CATALOG))}.")
    config = validate(training_schema(name), values)
    own = {key: getattr(config, key) for key in entry(name).config.model_fields}
    return entry(name).stage(entry(name).config(**own)), config
