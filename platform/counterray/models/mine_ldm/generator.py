"""Models that set attributes as a `Generator`, and how they are opened from bundles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from counterray.bundle import Bundle
from counterray.config import Config, ConfigError, validate
from counterray.data.study import Batch
from counterray.diffusion.abduction import AbductionConfig
from counterray.diffusion.sampling import SamplerConfig
from counterray.models.generator import Edit, EditError
from counterray.models.mine_ldm.model import AttributeModel, ConditionalVAE, MineLDM
from counterray.models.mine_ldm.stages import load, require_drawable
from counterray.models.mine_ldm.vae_stage import load_vae


class GenerationConfig(Config):
    """How `mine_ldm` generates."""

    sampler: dict[str, Any] = Field(default_factory=dict)
    """Settings of `SamplerConfig` in place of the bundle's own."""
    start: int | None = Field(default=None, ge=1)
    """t0 in place of the bundle's own: the larger, the more is drawn anew."""
    abduction: dict[str, Any] = Field(default_factory=dict)
    """Settings of `AbductionConfig` in place of the bundle's own."""


def open_ldm(bundle: Bundle, config: GenerationConfig | None = None) -> MineLDM:
    """The trained diffusion, drawing and abducting as ``config`` says.

    Raises:
        BundleError: If the bundle is another stage's.
        ConfigError: If a setting is unknown or refused, or the settings do not go together.
    """
    model, config = load(bundle), config or GenerationConfig()
    model.sampler = validate(SamplerConfig, {**model.sampler.model_dump(), **config.sampler})
    model.abduction = validate(AbductionConfig, {**model.abduction.model_dump(), **config.abduction})
    model.start = config.start or model.start
    try:
        require_drawable(model.schedule, model.sampler, model.start, model.abduction)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return model


def open_conditional_vae(bundle: Bundle) -> ConditionalVAE:
    """The trained autoencoder that is told attributes.

    Raises:
        BundleError: If the bundle is another stage's.
        ConfigError: If it is told none.
    """
    try:
        return ConditionalVAE(load_vae(bundle)).eval()
    except ValueError as error:
        raise ConfigError(
            f"The bundle at {bundle.location.uri} edits no images: {error} It is the first stage of "
            "mine_ldm; give the bundle of that, or train mine_vae with attributes."
        ) from error


class AttributeGenerator:
    """Implements `Generator`: this patient with another level of an attribute.

    All rows take the same path, also those that show the level that is asked for: their edit is the null
    intervention.

    Args:
        model: A trained model, on the device to compute on.
    """

    def __init__(self, model: AttributeModel) -> None:
        self.model = model
        self.image_size: int = model.image_size
        self.finding_names: tuple[str, ...] = ()
        self.levels: Mapping[str, tuple[str, ...]] = model.space.levels
        self.ranges: Mapping[str, tuple[float, float]] = {}
        self.seeded = model.seeded

    @torch.no_grad()
    def edit(self, batch: Batch, edit: Edit, *, seeds: Tensor, donor: Batch | None = None) -> Tensor:
        """Counterfactuals ``[B, 1, H, W]``; see `Generator`.

        Attributes that the edit does not set, and of the donor none, stay as the patient's.

        Raises:
            EditError: If the edit is by words, severity or donor, or sets anything but the model's
                attributes.
        """
        if edit.prompt or donor is not None:
            raise EditError(
                f"This generator sets attributes ({', '.join(self.levels)}) by do, such as "
                f"{self._example()}; it knows no words and takes no pathology from donors."
            )
        asked = edit.require(self.finding_names, self.levels).codes(self.levels)
        if not asked:
            raise EditError(f"An empty edit: set an attribute, such as {self._example()}.")
        image = batch.image.to(self.model.device)
        codes = self.model.space.codes(batch.attributes, like=image)
        noise = self.model.abduct(image, codes, seeds=seeds)
        target = codes.clone()
        for name, code in asked.items():
            target[:, list(self.levels).index(name)] = code
        return self.model.render(noise, target).cpu()

    def _example(self) -> str:
        name, levels = next(iter(self.levels.items()))
        return f"{name}={levels[-1]}"
