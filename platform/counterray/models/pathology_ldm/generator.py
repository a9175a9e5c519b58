"""`pathology_ldm` as a `Generator`: edits by findings, in words or from a donor, rare ones optimised."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from counterray.bundle import Bundle
from counterray.config import Config, validate
from counterray.data.study import Batch
from counterray.diffusion.noise_optimisation import NoiseOptimisationConfig, optimise_noise
from counterray.diffusion.sampling import SamplerConfig
from counterray.diffusion.targets import targets_for, typical_spread
from counterray.models.generator import Edit, EditError, edited_findings, generation_device, image_seed
from counterray.models.pathology_ldm.mechanism import Abduction
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
    abduction: Abduction = "fresh"
    """Where the initial noise comes from, see `Abduction`."""
    optimise: NoiseOptimisationConfig | None = None
    """Optimises the initial noise towards reference images that show the finding; off where null."""
    references: int = Field(default=10, ge=1)
    """m: reference images of the training split (the paper's 10)."""


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
        self.model = load(bundle).to(generation_device())
        self.config = config or GenerationConfig()
        self.prompts = self.config.prompts or prompt_source(bundle)
        own = self.model.sampler.model_dump()
        self.sampler = validate(SamplerConfig, {**own, **self.config.sampler})
        self.image_size: int = self.model.image_size
        self.finding_names: tuple[str, ...] = tuple(bundle.metadata["finding_names"])
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
        identity, pathology = self._encoded(batch)
        if donor is not None:
            return self.model.decode(identity, self._encoded(donor)[1]).cpu()
        if not edit.do and not edit.prompt:
            raise EditError("An empty edit: give findings (do), words (prompt) or a donor.")
        rows = self._to_draw(batch, edit.require(self.finding_names))
        if len(rows):
            pathology = pathology.clone()
            pathology[rows] = self._drawn(
                batch.select(rows), edit, identity[rows], pathology[rows], seeds[rows]
            )
        return self.model.decode(identity, pathology).cpu()

    def _to_draw(self, batch: Batch, edit: Edit) -> Tensor:
        if edit.prompt or edit.severity:
            return torch.arange(len(batch))
        target = edited_findings(batch, edit)
        known = batch.findings.where(batch.finding_mask, torch.nan)
        changed = (target != known) & ~target.isnan()
        return changed.any(dim=1).nonzero().flatten()

    def _drawn(self, batch: Batch, edit: Edit, identity: Tensor, pathology: Tensor, seeds: Tensor) -> Tensor:
        sampler = self.sampler
        condition = self.model.prompts(edited_prompts(batch, edit, self.prompts))
        if self.config.abduction == "inverted":
            own = self.model.prompts(study_prompts(batch, self.prompts))
            noise = self.model.invert(own, pathology, sampler=sampler)
        else:
            noise = self.model.noise(seeds)
        if self.config.optimise is not None:
            noise = self._optimised(edit, condition, identity, noise, seeds, sampler)
        return self.model.draw(condition, noise=noise, seeds=seeds, sampler=sampler)

    def _optimised(
        self,
        edit: Edit,
        condition: TextStates,
        identity: Tensor,
        noise: Tensor,
        seeds: Tensor,
        sampler: SamplerConfig,
    ) -> Tensor:
        assert self.config.optimise is not None
        references = self._features_of(_asked(edit))
        with torch.enable_grad():
            return optimise_noise(
                self.model.denoiser,
                self.model.schedule,
                sampler,
                self.config.optimise,
                condition,
                noise=noise,
                targets=targets_for(references, self.config.optimise.targets, seeds=seeds),
                features=self.model.image_features(identity),
                null=self.model.denoiser.null,
                drift=self.model.drift,
                spread=typical_spread(references) if self.config.optimise.repulsion else None,
            ).noise

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

    def _encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Identity and pathology channels; an image that occurs several times is encoded once."""
        places: dict[str, int] = {}
        rows = [places.setdefault(name, len(places)) for name in batch.image_ids]
        if len(places) == len(batch):
            return self.model.encode(batch.image)
        first = torch.tensor([rows.index(place) for place in range(len(places))])
        identity, pathology = self.model.encode(batch.image[first])
        return identity[rows], pathology[rows]


def text_editor(
    model: PathologyLDM, *, source: PromptSource, seed: int = 0
) -> Callable[[Tensor, Batch, Batch], Tensor]:
    """The editor "this patient with what that patient's prompt says".

    Args:
        model: A trained model.
        source: Where prompts come from.
        seed: Of the initial noise, which is drawn anew for each image from this and the image's identifier.
    """

    @torch.no_grad()
    def edit(image: Tensor, patient: Batch, target: Batch) -> Tensor:
        identity, pathology = model.encode(image)
        # The null intervention keeps the pathology that this very image shows.
        if target is not patient:
            seeds = torch.tensor([image_seed(seed, name) for name in patient.image_ids])
            condition = model.prompts(study_prompts(target, source))
            pathology = model.draw(condition, noise=model.noise(seeds), seeds=seeds)
        return model.decode(identity, pathology).to(image)

    return edit


def _asked(edit: Edit) -> tuple[str, ...]:
    """Findings that an edit asks to show."""
    if edit.do:
        return tuple(sorted(name.removeprefix("finding.") for name, value in edit.do.items() if value == 1))
    [refined] = RulesRefiner().refine([edit.prompt])
    affirmed = {m.finding for m in refined.mentions if not m.negated and m.finding != "no_finding"}
    return tuple(sorted(affirmed))
