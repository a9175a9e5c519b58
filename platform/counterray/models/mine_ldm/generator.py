"""Models that set attributes as a `Generator`, and how they are opened from bundles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from counterray.bundle import Bundle
from counterray.config import Config, ConfigError, validate
from counterray.data.study import Batch
from counterray.diffusion.abduction import AbductionConfig
from counterray.diffusion.sampling import OnStep, SamplerConfig
from counterray.models.generator import Abduction, Edit, EditError, Generator, by_edit
from counterray.models.mine_ldm.model import AttributeModel, AttributeNoise, ConditionalVAE, MineLDM
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


class AttributeGenerator(Generator):
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
    def abduct(self, batch: Batch, edit: Edit | None = None) -> Abduction:
        """What `AttributeNoise` is made of; see `Generator`."""
        image = batch.image.to(self.model.device)
        noise = self.model.abduct(image, self.model.space.codes(batch.attributes, like=image))
        tensors = {name: value for name, value in vars(noise).items() if value is not None}
        return Abduction(patients=batch.without_pixels(), tensors=tensors)

    @torch.no_grad()
    def predict(
        self,
        abduction: Abduction,
        edits: Sequence[Edit],
        *,
        seeds: Tensor,
        donor: Abduction | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Counterfactuals ``[B, 1, H, W]``; see `Generator`.

        Attributes that an edit does not set stay as the patient's.

        Raises:
            EditError: If an edit is by words, severity or donor, or sets anything but the model's
                attributes.
        """
        noise = AttributeNoise(**abduction.to(self.model.device).tensors)
        target = noise.codes.clone()
        for edit, rows in by_edit(edits):
            for name, code in self._asked(edit, donor).items():
                target[rows, list(self.levels).index(name)] = code
        return self.model.render(noise, target, seeds=seeds, on_step=on_step).cpu()

    def sampling(self, *, steps: int | None, guidance: float | None) -> Generator:
        """The same weights under another sampler; see `Generator`."""
        if (steps, guidance) == (None, None) or not isinstance(self.model, MineLDM):
            return super().sampling(steps=steps, guidance=guidance)
        model = copy(self.model)
        try:
            model.sampler = self.model.sampler.replaced(steps=steps, guidance=guidance)
            require_drawable(model.schedule, model.sampler, model.start, model.abduction)
        except ValueError as error:
            raise EditError(str(error)) from error
        return AttributeGenerator(model)

    def _asked(self, edit: Edit, donor: Abduction | None) -> dict[str, float]:
        if edit.prompt or donor is not None:
            raise EditError(
                f"This generator sets attributes ({', '.join(self.levels)}) by do, such as "
                f"{self._example()}; it knows no words and takes no pathology from donors."
            )
        asked = edit.require(self.finding_names, self.levels).codes(self.levels)
        if not asked:
            raise EditError(f"An empty edit: set an attribute, such as {self._example()}.")
        return asked

    def _example(self) -> str:
        name, levels = next(iter(self.levels.items()))
        return f"{name}={levels[-1]}"
