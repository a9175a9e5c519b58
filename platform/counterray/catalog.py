"""The one list to extend: which stages there are, how they are configured, and which paper they are from."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pydantic
from torch import nn

from counterray.bundle import Bundle
from counterray.config import ConfigError, read, validate
from counterray.training.config import TrainingConfig
from counterray.training.stage import Stage, StageConfig


@dataclass(frozen=True)
class Entry:
    """A stage that can be trained. Its code is imported when it is asked for, and no other stage's.

    Attributes:
        classes: Module below ``counterray.models`` and the name that its two classes begin with:
            ``<name>Config``, the settings, and ``<name>Stage``, made from them.
        reference: The paper that it implements.
        loader: Module and name of what rebuilds the trained module from a bundle.
    """

    classes: str
    reference: str
    loader: str = "predictors:load_judge"

    @property
    def method(self) -> str:
        """The method that it belongs to; its folder in ``models/``."""
        return self.classes.partition(".")[0]

    @property
    def config(self) -> type[StageConfig]:
        """Its settings."""
        return cast("type[StageConfig]", _resolve(f"{self.classes}Config"))

    @property
    def stage(self) -> Callable[[Any], Stage]:
        """Makes it from its settings."""
        return cast("Callable[[Any], Stage]", _resolve(f"{self.classes}Stage"))

    @property
    def load(self) -> Callable[[Bundle], nn.Module]:
        """Rebuilds the trained module from a bundle, frozen and in evaluation mode."""
        return cast("Callable[[Bundle], nn.Module]", _resolve(self.loader))


def _resolve(name: str) -> Any:
    return pkgutil.resolve_name(f"counterray.models.{name}")


CATALOG: Mapping[str, Entry] = {
    "classifier": Entry(
        "predictors.classifier:Classifier",
        "He et al., 2016, https://arxiv.org/abs/1603.05027",
    ),
    "segmentor": Entry(
        "predictors.segmentor:Segmentor",
        "Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597",
    ),
    "regressor": Entry(
        "predictors.regressor:Regressor",
        "He et al., 2016, https://arxiv.org/abs/1603.05027",
    ),
    "demographic": Entry(
        "predictors.demographic:Demographic",
        "He et al., 2016, https://arxiv.org/abs/1603.05027",
    ),
    "identity_encoder": Entry(
        "predictors.identity:IdentityEncoder",
        "Khosla et al., 2020, https://arxiv.org/abs/2004.11362",
    ),
    "image_text_encoder": Entry(
        "predictors.image_text:ImageTextEncoder",
        "Radford et al., 2021, https://arxiv.org/abs/2103.00020",
    ),
    "gsvae": Entry(
        "gsvae.stages:GSVAE",
        "Nie et al., Causal Disentanglement for Robust Long-tail Medical Image Generation, stage 1",
        "gsvae.stages:load",
    ),
    "pathology_ldm": Entry(
        "pathology_ldm.stages:PathologyLDM",
        "Nie et al., Causal Disentanglement for Robust Long-tail Medical Image Generation, stage 2",
        "pathology_ldm.stages:load",
    ),
    "mine_vae": Entry(
        "mine_ldm.vae_stage:MineVAE",
        "Ma et al., 2025, https://arxiv.org/abs/2504.19621; told attributes: Higgins et al., 2017",
        "mine_ldm.vae_stage:load_vae",
    ),
    "mine_perturbation": Entry(
        "mine_ldm.perturbation_stage:MinePerturbation",
        "Ma et al., 2025, https://arxiv.org/abs/2504.19621; Belghazi et al., 2018",
        "mine_ldm.perturbation_stage:load_perturbation",
    ),
    "mine_ldm": Entry(
        "mine_ldm.stages:MineLDM",
        "Ma et al., 2025, https://arxiv.org/abs/2504.19621",
        "mine_ldm.stages:load",
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
