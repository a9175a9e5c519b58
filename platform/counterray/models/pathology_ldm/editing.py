"""Edits of `pathology_ldm` below the level of a `Generator`: optimised noise, and the editor by prompts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.diffusion.noise_optimisation import (
    NoiseOptimisationConfig,
    OptimisedNoise,
    optimise_noise,
)
from counterray.diffusion.targets import targets_for, typical_spread
from counterray.models.generator import image_seed
from counterray.models.pathology_ldm.abduction import Abducted
from counterray.models.pathology_ldm.model import PathologyLDM
from counterray.models.pathology_ldm.prompts import PromptSource, study_prompts
from counterray.nn.text import TextStates


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
