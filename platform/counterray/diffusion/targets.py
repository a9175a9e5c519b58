"""What noise optimisation aims at: points among the features of a few real images of a class."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

TargetChoice = Literal["reference", "leave_one_out", "centroid"]

_STREAM = 1
"""Sets the draw of a reference apart from other uses of a sample's seed."""


def targets_for(references: Tensor, choice: TargetChoice, *, seeds: Tensor) -> Tensor:
    """A target for each sample, ``[B, D]``, drawn by its own seed.

    Pulling all samples to the ``centroid`` makes them alike (their features then spread less than half as
    much as the class's); with ``reference`` or ``leave_one_out`` they keep apart.
    Reference: Nie et al., Causal Disentanglement for Robust Long-tail Medical Image Generation, equation 17,
        is ``centroid``; the other choices are ours.

    Args:
        references: ``[m, D]`` features of m real images of the class.
        choice: ``reference``: one of them at random. ``leave_one_out``: the mean of all but one at random.
            ``centroid``: the mean of all.
        seeds: ``[B]`` long.

    Raises:
        ValueError: If there are no references, or only one to leave out.
    """
    needed = 2 if choice == "leave_one_out" else 1
    if references.dim() != 2 or len(references) < needed:
        raise ValueError(
            f"targets = {choice} needs {needed} or more reference images' features [m, D], got "
            f"{list(references.shape)}; give more images of the class or take targets: centroid."
        )
    mean = references.mean(0)
    if choice == "centroid":
        return mean.expand(len(seeds), -1).clone()
    count = len(references)
    drawn = [int(np.random.default_rng([int(seed), _STREAM]).integers(count)) for seed in seeds]
    chosen = references[torch.tensor(drawn, device=references.device)]
    return chosen if choice == "reference" else (count * mean - chosen) / (count - 1)


def target_distance(features: Tensor, targets: Tensor) -> Tensor:
    """Euclidean distance ``[B]`` between features and targets, both ``[B, D]``; 0 is best.

    Of the latents that `sample` draws from an optimised noise it is the distance to report: the optimiser's
    own is that of a coarser sampling.
    """
    return torch.as_tensor(torch.linalg.vector_norm(features.float() - targets.float(), dim=1))


def typical_spread(references: Tensor) -> Tensor:
    """Mean squared distance between two different references, a scalar; the unit of repulsion.

    Args:
        references: ``[m, D]``, m ≥ 2.

    Raises:
        ValueError: If there are fewer than two references.
    """
    if len(references) < 2:
        raise ValueError(
            f"Repulsion needs the spread of 2 or more reference images, got {len(references)}; give more "
            "or set repulsion: 0."
        )
    return 2 * references.float().var(dim=0, unbiased=True).sum()
