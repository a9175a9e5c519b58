"""Counterfactuals of phantom individuals by a trained generator, as it is or made unfit on purpose.

Letters: N = individuals, K = levels, R = null interventions, S = edge of the images [px].
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from counterray.audits.worlds.level_images import LevelImages
from counterray.models.mine_ldm.model import MineLDM

AT_ONCE = 128
"""Individuals whose images are made together."""


@dataclass(frozen=True)
class Counterfactuals:
    """What a generator made of individuals.

    Attributes:
        images: ``[K, N, 1, S, S]`` in [-1, 1], the own level included.
        null: ``[R, N, 1, S, S]``, null interventions.
    """

    images: Tensor
    null: Tensor


def exact(individuals: LevelImages) -> Counterfactuals:
    """The renderer's: a null intervention gives back the very image."""
    return Counterfactuals(individuals.images, individuals.batch.image[None])


@torch.no_grad()
def generated(
    model: MineLDM, individuals: LevelImages, *, nulls: int, seed: int, shuffled: bool = False
) -> Counterfactuals:
    """The model's: each individual's levels are made from one abducted noise.

    Args:
        model: Trained on the individuals' attribute, among others; those stay.
        individuals: Whose ``images`` are not looked at.
        nulls: R, for a model with randomness, each from noise of its own. Another repeats itself exactly: its
            one null intervention is the image at the own level.
        seed: Of all noise.
        shuffled: Whether each image is asked for at a level drawn at random, whatever level it stands for.
    """
    batch, draws = individuals.batch, torch.Generator().manual_seed(seed)
    codes = model.space.codes(batch.attributes, like=batch.image)
    column = list(model.space.levels).index(individuals.attribute)
    count, size = len(individuals.levels), len(batch)
    asked = torch.arange(count)[:, None].expand(count, size)
    if shuffled:
        asked = torch.randint(count, (count, size), generator=draws)
    known = model.space.levels[individuals.attribute]
    asked = torch.tensor([known.index(level) for level in individuals.levels])[asked]
    seeds = torch.randint(2**62, (1 + nulls, size), generator=draws)
    images, null = torch.empty((count, *batch.image.shape)), []
    for rows in torch.arange(size).split(AT_ONCE):  # type: ignore[no-untyped-call]
        noise = model.abduct(batch.image[rows], codes[rows])
        for level in range(count):
            target = codes[rows].clone()
            target[:, column] = asked[level, rows].to(target)
            images[level, rows] = model.render(noise, target, seeds=seeds[0, rows]).cpu()
        if model.seeded:
            others = [model.render(noise, codes[rows], seeds=each[rows]).cpu() for each in seeds[1:]]
            null.append(torch.stack(others))
    own = images[torch.from_numpy(individuals.own), torch.arange(size)]
    return Counterfactuals(images, torch.cat(null, dim=1) if null else own[None])


def untrained(model: MineLDM, *, seed: int) -> MineLDM:
    """The model with a denoiser that has learned nothing: all of its weights are drawn anew."""
    other = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in other.denoiser.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding | nn.GroupNorm | nn.LayerNorm):
                module.reset_parameters()
    return other
