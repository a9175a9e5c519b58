"""Mutual information between a representation and attributes, bounded from below by a trained critic.

Letters: B pairs, C latent channels, h x w latent positions, K levels of all attributes.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from counterray.config import Config
from counterray.models.mine_ldm.attributes import as_maps
from counterray.nn.blocks import ResidualBlock, normalization, parameter_dtype


class CriticConfig(Config):
    """Size of a `Critic`; the defaults are the published ones, those of a ResNet-18."""

    widths: tuple[int, ...] = Field(default=(64, 128, 256, 512), min_length=1)
    """Feature maps of each stage; each stage after the first halves height and width."""
    blocks: int = Field(default=2, ge=1)
    """Residual blocks of a stage."""
    average_rate: float = Field(default=0.01, gt=0, le=1)
    """Weight of a batch in the moving average that corrects the gradient, see `Critic.objective`."""


class Critic(nn.Module):
    """MINE's statistics network S(z, a): a residual network over latents with the attribute's one-hot maps.

    Args:
        config: Size.
        channels: C.
        levels: K.

    Reference: Belghazi et al., 2018, https://arxiv.org/abs/1801.04062; the network: Ma et al., 2025,
        https://arxiv.org/abs/2504.19621, with GroupNorm in place of BatchNorm: the bound holds for a fixed
        function of a pair, and BatchNorm makes S of a pair depend on the batch, thus on whether it is of the
        joint distribution or of the product.
    """

    log_average: Tensor

    def __init__(self, config: CriticConfig, *, channels: int, levels: int) -> None:
        super().__init__()
        self.average_rate = config.average_rate
        layers: list[nn.Module] = [nn.Conv2d(channels + levels, config.widths[0], 3, padding=1)]
        for index, (before, width) in enumerate(pairwise((config.widths[0], *config.widths))):
            layers.append(ResidualBlock(before, width, stride=2 if index else 1))
            layers += [ResidualBlock(width, width) for _ in range(config.blocks - 1)]
        width = config.widths[-1]
        layers += [
            normalization(width),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 1),
        ]
        self.network = nn.Sequential(*layers)
        # log of the moving average of E[exp S] over the product; an untrained S is about 0. An engine in bf16
        # would round its small steps away: the networks are small enough for fp32.
        self.register_buffer("log_average", torch.zeros(()))

    def forward(self, latent: Tensor, one_hot: Tensor) -> Tensor:
        """S ``[B]`` (float32) of latents ``[B, C, h, w]`` and attributes ``[B, K]``."""
        latent = latent.to(parameter_dtype(self))
        return torch.as_tensor(self.network(torch.cat([latent, as_maps(one_hot, latent)], dim=1))).float()[
            :, 0
        ]

    def objective(self, joint: Tensor, product: Tensor) -> Tensor:
        """What the critic minimises, a scalar whose gradient is that of the bound with less bias.

        The gradient of log E[e^S] is E[e^S ∇S] / E[e^S]; with both taken from one batch it is biased. The
        denominator is a moving average instead: ``-(E_joint[S] - E_product[e^S] / average)``. In training
        mode the average takes the batch in first.

        Args:
            joint: S ``[B]`` of pairs.
            product: S ``[B]`` of latents with the attributes of others.

        Reference: Belghazi et al., 2018, section 3.2, equation 12.
        """
        if self.training:
            self._observe(product.detach())
        return (product - self.log_average.float()).exp().mean() - joint.mean()

    @torch.no_grad()
    def _observe(self, product: Tensor) -> None:
        rate, batch = self.average_rate, log_mean_exp(product)
        if rate < 1:
            batch = torch.logaddexp(self.log_average.float() + math.log1p(-rate), batch + math.log(rate))
        self.log_average.copy_(batch)


def donsker_varadhan(joint: Tensor, product: Tensor) -> Tensor:
    """``E_joint[S] - log E_product[e^S]``, a scalar [nats]: at most the mutual information, as S is better.

    The published code leaves the logarithm out, which bounds the information less 1.

    Args:
        joint: S ``[B]`` of pairs.
        product: S ``[B]`` of independent draws of both.

    Reference: Donsker and Varadhan, 1983; Belghazi et al., 2018, equation 10.
    """
    return joint.mean() - log_mean_exp(product)


def log_mean_exp(values: Tensor) -> Tensor:
    """``log mean(exp(values))`` of ``[B]``, without overflow."""
    return torch.logsumexp(values, dim=0) - math.log(len(values))


def other_rows(count: int, device: torch.device) -> Tensor:
    """For each of so many rows another one, at random, ``[count]`` long: pairs of independent draws.

    None is its own partner, which would be a draw of the joint distribution. Uses torch's global random
    state.
    """
    order = torch.randperm(count, device=device)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
