"""T_ξ: a step of fixed length that takes an attribute out of a latent.

Letters: B images, C latent channels, h x w latent positions.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterray.config import Config
from counterray.nn.blocks import parameter_dtype

TINY = 1e-8
"""Least length that P(z) is divided by."""


class PerturbationConfig(Config):
    """Size of a `Perturbation`; the defaults are the published ones."""

    widths: tuple[int, ...] = Field(default=(16, 32, 64), min_length=1)
    """Channels of P after each halving of the latents' resolution (table 4)."""
    relative_size: float = Field(default=0.1, gt=0)
    """‖T(z) - z‖ / ‖z‖ of a typical latent."""


class Perturbation(nn.Module):
    """``T_ξ(u) = u + ξ P(u) / ‖P(u)‖`` of standardised latents, with a U-shaped P.

    A latent u of mean 0 and variance 1 has a length of about √(C h w), so that ξ is ``relative_size`` times
    this: the same fraction of every size of latent.

    Args:
        config: Size.
        channels: C.
        size: Edge h = w of a latent.

    Raises:
        ValueError: If the latents cannot be halved as often as there are widths.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, section 3.3 and table 4: no skip
        connections, bilinear up-sampling. GroupNorm and SiLU stand in for BatchNorm and ReLU, so that a
        latent's T does not depend on those beside it. The published code returns P(u) alone, which leaves
        nothing of u.
    """

    def __init__(self, config: PerturbationConfig, *, channels: int, size: int) -> None:
        super().__init__()
        if size % 2 ** len(config.widths):
            raise ValueError(
                f"The latents' edge ({size}) is not divisible by {2 ** len(config.widths)}: P halves it for "
                f"each of perturbation.widths {config.widths}. Use fewer widths."
            )
        self.length = config.relative_size * math.sqrt(channels * size * size)
        levels = (channels, *config.widths)
        self.stem = _double(channels, channels)
        self.down = nn.ModuleList([_double(fine, coarse) for fine, coarse in pairwise(levels)])
        self.up = nn.ModuleList([_double(coarse, fine) for coarse, fine in pairwise(levels[::-1])])
        self.head = nn.Conv2d(channels, channels, 1)

    def forward(self, latent: Tensor) -> Tensor:
        """T_ξ(u) ``[B, C, h, w]``, float32, of u ``[B, C, h, w]``."""
        direction = self._direction(latent.to(parameter_dtype(self))).float()
        norm = direction.flatten(1).norm(dim=1).clamp(min=TINY)
        return torch.as_tensor(latent.float() + self.length * direction / norm[:, None, None, None])

    def _direction(self, hidden: Tensor) -> Tensor:
        hidden = self.stem(hidden)
        for level in self.down:
            hidden = level(functional.max_pool2d(hidden, 2))
        for level in self.up:
            hidden = level(functional.interpolate(hidden, scale_factor=2.0, mode="bilinear"))
        return torch.as_tensor(self.head(hidden))


def _double(before: int, after: int) -> nn.Sequential:
    # One group: with few channels and positions, more would take a channel's mean away.
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.GroupNorm(1, after), nn.SiLU()]
    return nn.Sequential(*layers)
