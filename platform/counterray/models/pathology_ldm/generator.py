"""`pathology_ldm` as a `Generator`: edits by findings, in words or from a donor, rare ones optimised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
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
)
from counterray.diffusion.sampling import OnStep, SamplerConfig, seen_as
from counterray.diffusion.schedule import sampling_scheduler
from counterray.models.generator import (
    Abduction,
    Edit,
    EditError,
    Generator,
    by_edit,
    generation_device,
    shows_already,
)
from counterray.models.pathology_ldm.abduction import Abducted
from counterray.models.pathology_ldm.editing import optimised_noise
from counterray.models.pathology_ldm.model import PathologyLDM
from counterray.models.pathology_ldm.prompts import PromptSource, edited_prompts, study_prompts
from counterray.models.pathology_ldm.stages import load, prompt_source
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


class PathologyLDMGenerator(Generator):
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
        self.prompted = True
        self.seeded = self.model.abduction.noise == "fresh" or drawn_to
        self.levels: Mapping[str, tuple[str, ...]] = {}
        self.ranges: Mapping[str, tuple[float, float]] = {}
        self._training = training
        self._references: dict[tuple[str, ...], Tensor] = {}

    @torch.no_grad()
    def abduct(self, batch: Batch, edit: Edit | None = None) -> Abduction:
        """Channels, what decoding leaves out, and the noise behind the pathology; see `Generator`.

        That noise is read off the image where it is inverted, given what the patient's own prompt says. An
        image that occurs several times is read once.
        """
        own = study_prompts(batch, self.prompts) if self._inverts(edit) else [""] * len(batch)
        places: dict[tuple[str, str], int] = {}
        names = batch.image_ids or tuple(map(str, range(len(batch))))
        rows = torch.tensor([places.setdefault(key, len(places)) for key in zip(names, own, strict=True)])
        first = torch.tensor([rows.tolist().index(place) for place in range(len(places))])
        patients = self.model.abduct(batch.image[first])
        tensors = {"identity": patients.identity, "pathology": patients.pathology}
        if patients.residual is not None:
            tensors["residual"] = patients.residual
        if self._inverts(edit):
            condition = self.model.prompts([own[row] for row in first.tolist()])
            tensors["initial"] = self.model.invert(condition, patients.pathology)
        whole = Abduction(patients=batch.without_pixels().select(first), tensors=tensors).select(rows)
        return replace(whole, patients=batch.without_pixels())

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

        A donor gives its own pathology channel. Rows that already show the findings asked for, with no
        severity named, keep theirs.

        Raises:
            EditError: If an edit names an unknown finding, or is empty.
            NoReferenceError: If noise is to be optimised for what too few training images show.
        """
        abduction = abduction.to(self.model.device)
        patients = _patients(abduction, edits)
        if donor is not None:
            return self.model.render(patients, donor.to(self.model.device).tensors["pathology"]).cpu()
        rows = self._changed(abduction.patients, edits)
        pathology = patients.pathology
        if len(rows):
            shown = None if on_step is None else seen_as(on_step, partial(self._whole, patients, rows))
            pathology = pathology.clone()
            pathology[rows] = self._drawn(
                abduction.select(rows), [edits[row] for row in rows.tolist()], seeds[rows.cpu()], shown
            )
        return self.model.render(patients, pathology).cpu()

    def sampling(self, *, steps: int | None, guidance: float | None) -> Generator:
        """The same weights under another sampler; see `Generator`."""
        other = copy(self)
        other.model = copy(self.model)
        try:
            other.model.sampler = self.model.sampler.replaced(steps=steps, guidance=guidance)
            sampling_scheduler(other.model.schedule, other.model.sampler.scheduler, other.model.sampler.steps)
        except ValueError as error:
            raise EditError(str(error)) from error
        return other

    def _inverts(self, edit: Edit | None) -> bool:
        """Whether ``edit``, or any edit where ``None``, reads the noise behind the image."""
        reads = edit is None or bool(edit.do) or (bool(edit.prompt) and not edit.anatomy_only)
        return self.model.abduction.noise == "inverted" and reads

    def _changed(self, patients: Batch, edits: Sequence[Edit]) -> Tensor:
        """Rows (a long tensor) whose pathology is drawn anew."""
        changed = torch.zeros(len(patients), dtype=torch.bool)
        for edit, rows in by_edit(edits):
            if not edit.do and not edit.prompt:
                raise EditError("An empty edit: give findings (do), words (prompt) or a donor.")
            asked = edit.require(self.finding_names)
            changed[rows] = ~shows_already(patients.select(rows), asked, self.levels)
        return changed.nonzero().flatten()

    def _whole(self, patients: Abducted, rows: Tensor, pathology: Tensor) -> Tensor:
        """All images, of which ``rows`` show ``pathology`` and the others their own."""
        channel = patients.pathology.clone()
        channel[rows] = pathology
        return self.model.render(patients, channel).cpu()

    def _drawn(
        self, abduction: Abduction, edits: Sequence[Edit], seeds: Tensor, on_step: OnStep | None
    ) -> Tensor:
        """z^n ``[B, 1, h, w]`` as the edits ask for."""
        prompts = [""] * len(edits)
        noise = abduction.tensors.get("initial")
        noise = self.model.noise(seeds) if noise is None else noise.clone()
        for edit, rows in by_edit(edits):
            words = edited_prompts(abduction.patients.select(rows), edit, self.prompts)
            for row, text in zip(rows.tolist(), words, strict=True):
                prompts[row] = text
            if edit.anatomy_only:
                noise[rows] = self.model.noise(seeds[rows])
        condition = self.model.prompts(prompts)
        if self.config.optimise is not None:
            patients = _patients(abduction, edits)
            for edit, rows in by_edit(edits):
                noise[rows] = optimised_noise(
                    self.model,
                    self.config.optimise,
                    condition[rows],
                    self._features_of(_asked(edit)),
                    patients.select(rows),
                    noise=noise[rows],
                    seeds=seeds[rows],
                ).noise
        return self.model.draw(condition, noise=noise, seeds=seeds, on_step=on_step)

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


def _patients(abduction: Abduction, edits: Sequence[Edit]) -> Abducted:
    """What the images are made of; of images from text alone without what decoding leaves out."""
    tensors = abduction.tensors
    residual = tensors.get("residual")
    if residual is not None and any(edit.anatomy_only for edit in edits):
        keep = torch.tensor([not edit.anatomy_only for edit in edits], device=residual.device)
        residual = residual * keep[:, None, None, None]
    return Abducted(tensors["identity"], tensors["pathology"], residual)


def _asked(edit: Edit) -> tuple[str, ...]:
    """Findings that an edit asks to show."""
    if edit.do:
        return tuple(sorted(name for name, value in edit.findings.items() if value == 1))
    [refined] = RulesRefiner().refine([edit.prompt])
    affirmed = {m.finding for m in refined.mentions if not m.negated and m.finding != "no_finding"}
    return tuple(sorted(affirmed))
