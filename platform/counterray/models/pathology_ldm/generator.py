"""`pathology_ldm` as a `Generator`: edits by findings, in words or from a donor, rare ones optimised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from counterray.bundle import Bundle
from counterray.config import Config, ConfigError, validate
from counterray.data.study import Batch
from counterray.diffusion.abduction import AbductionConfig
from counterray.diffusion.noise_optimisation import (
    NoiseOptimisationConfig,
    OptimisedNoise,
    optimise_noise,
)
from counterray.diffusion.sampling import SamplerConfig
from counterray.diffusion.schedule import sampling_scheduler
from counterray.diffusion.targets import targets_for, typical_spread
from counterray.models.generator import Edit, EditError, generation_device, image_seed, shows_already
from counterray.models.pathology_ldm.abduction import Abducted
from counterray.models.pathology_ldm.model import PathologyLDM
from counterray.models.pathology_ldm.prompts import PromptSource, edited_prompts, study_prompts
from counterray.models.pathology_ldm.stages import load, prompt_source
from counterray.nn.text import TextStates
from counterray.reports.rules import RulesRefiner


class NoReferenceError(EditError):
    """Noise cannot be optimised: the training split shows too few images of what is asked for."""


class GenerationConfig(Config):
    """How `pathology_ldm` generates."""

    sampler: dict[str, Any] = Field(default_factory=dict)
    """Settings of `SamplerConfig` in place of the bundle's own."""
    prompts: PromptSource | None = None
    """Where the words come from that say what a patient shows beside the edit; what the bundle was trained
    on where null."""
    abduction: dict[str, Any] = Field(default_factory=dict)
    """Settings of `AbductionConfig` in place of the bundle's own."""
    optimise: NoiseOptimisationConfig | None = None
    """Optimises the initial noise towards reference images that show the finding; off where null."""
    references: int = Field(default=10, ge=1)
    """m: reference images of the training split (the paper's 10)."""


def open_model(bundle: Bundle, config: GenerationConfig) -> PathologyLDM:
    """The trained model, drawing and abducting as ``config`` says.

    Raises:
        ConfigError: If a setting is unknown or refused, or inversion is asked of a sampler that has none.
    """
    model = load(bundle)
    model.sampler = validate(SamplerConfig, {**model.sampler.model_dump(), **config.sampler})
    model.abduction = validate(AbductionConfig, {**model.abduction.model_dump(), **config.abduction})
    try:
        model.abduction.require(model.sampler)
        sampling_scheduler(model.schedule, model.sampler.scheduler, model.sampler.steps)
        if config.optimise is not None:
            sampling_scheduler(model.schedule, "ddim", config.optimise.steps)
    except ValueError as error:
        raise ConfigError(f"generator settings: {error}") from error
    return model


class PathologyLDMGenerator:
    """Implements `Generator` for a `pathology_ldm` bundle.

    Args:
        bundle: A trained `pathology_ldm`.
        training: Batches of the training split; read only where noise is optimised.
        config: Settings.
    """

    def __init__(
        self, bundle: Bundle, training: Iterable[Batch] = (), config: GenerationConfig | None = None
    ) -> None:
        self.config = config or GenerationConfig()
        self.model = open_model(bundle, self.config).to(generation_device())
        self.prompts = self.config.prompts or prompt_source(bundle)
        self.image_size: int = self.model.image_size
        self.finding_names: tuple[str, ...] = tuple(bundle.metadata["finding_names"])
        aims = self.config.optimise
        drawn_to = aims is not None and aims.targets != "centroid"  # a reference that the seed chooses
        self.seeded = self.model.abduction.noise == "fresh" or drawn_to
        self.levels: Mapping[str, tuple[str, ...]] = {}
        self.ranges: Mapping[str, tuple[float, float]] = {}
        self._training = training
        self._references: dict[tuple[str, ...], Tensor] = {}

    @torch.no_grad()
    def edit(self, batch: Batch, edit: Edit, *, seeds: Tensor, donor: Batch | None = None) -> Tensor:
        """Counterfactuals ``[B, 1, H, W]``; see `Generator`.

        A donor gives its own pathology channel. Rows that already show the findings asked for, with no
        severity named, keep theirs.

        Raises:
            EditError: If the edit names an unknown finding, or is empty.
            NoReferenceError: If noise is to be optimised for what too few training images show.
        """
        patients = self._abducted(batch)
        if edit.anatomy_only:
            patients = replace(patients, residual=None)
        if donor is not None:
            return self.model.render(patients, self._abducted(donor).pathology).cpu()
        if not edit.do and not edit.prompt:
            raise EditError("An empty edit: give findings (do), words (prompt) or a donor.")
        rows = (~shows_already(batch, edit.require(self.finding_names), self.levels)).nonzero().flatten()
        pathology = patients.pathology
        if len(rows):
            pathology = pathology.clone()
            pathology[rows] = self._drawn(batch.select(rows), edit, patients.select(rows), seeds[rows])
        return self.model.render(patients, pathology).cpu()

    def _drawn(self, batch: Batch, edit: Edit, patients: Abducted, seeds: Tensor) -> Tensor:
        condition = self.model.prompts(edited_prompts(batch, edit, self.prompts))
        if edit.anatomy_only:
            noise = self.model.noise(seeds)
        else:
            noise = self.model.initial(patients, study_prompts(batch, self.prompts), seeds)
        if self.config.optimise is not None:
            references = self._features_of(_asked(edit))
            noise = optimised_noise(
                self.model, self.config.optimise, condition, references, patients, noise=noise, seeds=seeds
            ).noise
        return self.model.draw(condition, noise=noise, seeds=seeds)

    def _features_of(self, names: tuple[str, ...]) -> Tensor:
        """Pathology features ``[m, D]`` of the first m training images that show all of ``names``."""
        if not names:
            raise EditError("optimise needs a finding to look for: name one in do or in the prompt.")
        if names not in self._references:
            found: list[Tensor] = []
            for batch in self._training:
                unknown = sorted(set(names) - set(batch.finding_names))
                if unknown:
                    raise EditError(
                        f"optimise looks for training images of {unknown[0]}, which the data do not "
                        f"label. They label: {', '.join(batch.finding_names)}."
                    )
                columns = [batch.finding_names.index(name) for name in names]
                shown = ((batch.findings[:, columns] == 1) & batch.finding_mask[:, columns]).all(dim=1)
                if shown.any():
                    found.append(self.model.features(batch.image[shown].to(self.model.device)))
                if sum(len(part) for part in found) >= self.config.references:
                    break
            count = sum(len(part) for part in found)
            if count < 2:
                raise NoReferenceError(
                    f"{count} training images show {' + '.join(names)}; optimise needs 2 or more."
                )
            self._references[names] = torch.cat(found)[: self.config.references]
        return self._references[names]

    def _abducted(self, batch: Batch) -> Abducted:
        """What the images are made of; an image that occurs several times is encoded once."""
        places: dict[str, int] = {}
        rows = [places.setdefault(name, len(places)) for name in batch.image_ids]
        if len(places) == len(batch):
            return self.model.abduct(batch.image)
        first = torch.tensor([rows.index(place) for place in range(len(places))])
        return self.model.abduct(batch.image[first]).select(torch.tensor(rows))


def optimised_noise(
    model: PathologyLDM,
    config: NoiseOptimisationConfig,
    condition: TextStates,
    references: Tensor,
    patients: Abducted,
    *,
    noise: Tensor,
    seeds: Tensor,
) -> OptimisedNoise:
    """Initial noise from which the model's images come near reference images.

    Args:
        model: A trained model.
        config: How noise is optimised.
        condition: States of B prompts.
        references: Pathology features ``[m, D]`` of the reference images.
        patients: Whom the B images are to show.
        noise: ``[B, 1, h, w]`` to start from.
        seeds: ``[B]`` long, which decide what reference each is drawn to.
    """
    with torch.enable_grad():
        return optimise_noise(
            model.denoiser,
            model.schedule,
            model.sampler,
            config,
            condition,
            noise=noise,
            targets=targets_for(references, config.targets, seeds=seeds),
            features=model.image_features(patients),
            null=model.denoiser.null,
            drift=model.drift,
            spread=typical_spread(references) if config.repulsion else None,
        )


NoiseRefinement = Callable[[Tensor, TextStates, Abducted, Batch, Tensor], Tensor]
"""z_T ``[B, 1, h, w]``, prompts, patients, the studies whose findings are asked for, and seeds, to another
z_T."""


def text_editor(
    model: PathologyLDM, *, source: PromptSource, seed: int = 0, refine: NoiseRefinement | None = None
) -> Callable[[Tensor, Batch, Batch], Tensor]:
    """The editor "this patient with what that patient's prompt says".

    Args:
        model: A trained model.
        source: Where prompts come from.
        seed: Of fresh initial noise, drawn for each image from this and the image's identifier.
        refine: Applied to the initial noise.
    """

    @torch.no_grad()
    def edit(image: Tensor, patient: Batch, target: Batch) -> Tensor:
        abducted = model.abduct(image)
        pathology = abducted.pathology
        # The null intervention keeps the pathology that this very image shows.
        if target is not patient:
            seeds = torch.tensor([image_seed(seed, name) for name in patient.image_ids])
            condition = model.prompts(study_prompts(target, source))
            noise = model.initial(abducted, study_prompts(patient, source), seeds)
            if refine is not None:
                noise = refine(noise, condition, abducted, target, seeds)
            pathology = model.draw(condition, noise=noise, seeds=seeds)
        return model.render(abducted, pathology).to(image)

    return edit


def _asked(edit: Edit) -> tuple[str, ...]:
    """Findings that an edit asks to show."""
    if edit.do:
        return tuple(sorted(name for name, value in edit.findings.items() if value == 1))
    [refined] = RulesRefiner().refine([edit.prompt])
    affirmed = {m.finding for m in refined.mentions if not m.negated and m.finding != "no_finding"}
    return tuple(sorted(affirmed))
