"""The network of `gsvae`: encoder, interaction T of the channels, decoder, and a findings head on z^n.

Letters: B images, n latent channels, H x W pixels, h x w latent positions (H / f at down-sampling f),
p the edge of a patch, L = hw / p^2 tokens a channel, D the width of a token, F findings.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from counterray.config import Config
from counterray.models.gsvae.transformer import ChannelTransformer
from counterray.nn.blocks import (
    ResidualBlock,
    Upsample,
    channels_last,
    normalization,
    parameter_dtype,
    require_images,
)
from counterray.nn.gaussian import LOG_VARIANCE_RANGE, reparameterise


class NetworkConfig(Config):
    """Sizes of the `gsvae` network; the defaults are for 64x64 images."""

    latent_channels: int = Field(default=4, ge=1)
    """n: n - 1 identity channels and one pathology channel; 1 is a plain VAE (paper: 4 best, figure 9)."""
    widths: tuple[int, ...] = Field(default=(32, 64), min_length=1)
    """Feature maps after each halving of the resolution, the finest first; two give down-sampling 4. None
    at full resolution, where they would cost the most."""
    residual_blocks: int = Field(default=1, ge=0)
    """Residual blocks at each of these resolutions, in the encoder and in the decoder."""
    transformer_layers: int = Field(default=4, ge=0)
    """k: layers of T; 0 makes T the identity (paper: 4 best, figure 9)."""
    transformer_width: int = Field(default=256, ge=8)
    """D: width of a token in T; the paper gives none."""
    transformer_heads: int = Field(default=4, ge=1)
    """Attention heads of T; must divide ``transformer_width``."""
    patch_size: int | None = Field(default=None, ge=1)
    """p: edge of a token's patch [latent positions]; by default h / 8, which gives 64 tokens a channel."""
    swap_through_transformer: bool = True
    """Decode swapped latents as T(z'), as the paper's text says; false decodes z' itself (Algorithm 1)."""


class GSVAENetwork(nn.Module):
    """Encoder to n latent channels, interaction ``f = T(z)`` and decoder.

    Args:
        config: Sizes.
        image_size: Edge of the square images [px].
        findings: Number F of findings that the head predicts from z^n; at least 1.

    Raises:
        ValueError: If ``image_size``, ``patch_size``, ``transformer_heads`` and ``widths`` do not fit.

    Reference: Nie et al., Causal Disentanglement for Robust Long-tail Medical Image Generation, equation 2.
        The paper gives no tokenisation of T; see `ChannelTransformer`.
    """

    def __init__(self, config: NetworkConfig, *, image_size: int, findings: int) -> None:
        super().__init__()
        latent_size = _latent_size(config, image_size)
        self.config = config
        self.image_size = image_size
        self.latent_shape = (config.latent_channels, latent_size, latent_size)
        self.encoder = _encoder(config)
        self.transformer = ChannelTransformer(
            channels=config.latent_channels,
            latent_size=latent_size,
            patch_size=config.patch_size or max(1, latent_size // 8),
            layers=config.transformer_layers,
            width=config.transformer_width,
            heads=config.transformer_heads,
        )
        self.decoder = _decoder(config)
        self.findings_head = FindingsHead(findings)

    def forward(
        self, image: Tensor, partner: Tensor | None = None, *, sample: bool = True
    ) -> Mapping[str, Tensor]:
        """Encodes and decodes; with ``partner`` also decodes with the pathology of other images.

        The one entry for training, so that an engine that shards or replicates parameters sees one call.

        Args:
            image: ``[B, 1, H, W]`` in [-1, 1].
            partner: ``[B]`` long: image ``i`` is also decoded with the pathology of ``partner[i]``.
            sample: Draw z from the posterior (training), or take its mean.

        Returns:
            In float32: ``mean``, ``log_variance`` ``[B, n, h, w]``; ``reconstruction`` ``[B, 1, H, W]``;
            ``finding_logits`` ``[B, F]``; and with ``partner`` also ``swapped`` ``[B, 1, H, W]``.
        """
        mean, log_variance = self.encode(image)
        latent = reparameterise(mean, log_variance) if sample else mean
        result = {
            "mean": mean,
            "log_variance": log_variance,
            "reconstruction": self.decode(latent),
            "finding_logits": self.predict_findings(latent),
        }
        if partner is not None:
            through = self.config.swap_through_transformer
            result["swapped"] = self.decode(swap(latent, partner), through_transformer=through)
        return result

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior q(z | x), float32 ``[B, n, h, w]``.

        Raises:
            ValueError: If ``image`` is not of the size that the network was made for.
        """
        require_images(image, self.image_size)
        mean, log_variance = self.encoder(channels_last(image, self)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def decode(self, latent: Tensor, *, through_transformer: bool = True) -> Tensor:
        """The image ``[B, 1, H, W]``, float32, of ``latent`` ``[B, n, h, w]``."""
        latent = latent.to(parameter_dtype(self))
        interaction = self.transformer(latent) if through_transformer else latent
        return torch.as_tensor(self.decoder(channels_last(interaction, self))).float()

    def predict_findings(self, latent: Tensor) -> Tensor:
        """Logits ``[B, F]``, float32, of the findings from the pathology channel alone."""
        return torch.as_tensor(self.findings_head(latent[:, -1:].to(parameter_dtype(self)))).float()


class FindingsHead(nn.Module):
    """Findings from z^n alone (equation 6): two strided convolutions, a 4x4 pooled map, a linear layer.

    Args:
        findings: Number F of findings.
    """

    def __init__(self, findings: int) -> None:
        super().__init__()
        if findings < 1:
            raise ValueError(
                f"The dataset has {findings} findings with labels; gsvae needs at least 1 to supervise z^n."
            )
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.logits = nn.Linear(32 * 4 * 4, findings)

    def forward(self, pathology: Tensor) -> Tensor:
        """Logits ``[B, F]`` of ``pathology`` ``[B, 1, h, w]``."""
        return torch.as_tensor(self.logits(self.features(pathology)))


def swap(latent: Tensor, partner: Tensor) -> Tensor:
    """Gives each latent the pathology channel z^n of another.

    Args:
        latent: ``[B, n, h, w]``.
        partner: ``[B]`` long; row ``i`` receives z^n of row ``partner[i]``.
    """
    return torch.cat([latent[:, :-1], latent[partner, -1:]], dim=1)


def _encoder(config: NetworkConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fine, coarse in pairwise((1, *config.widths)):
        if layers:
            layers += [normalization(fine), nn.SiLU()]
        layers.append(nn.Conv2d(fine, coarse, 4, stride=2, padding=1))
        layers += [ResidualBlock(coarse, coarse) for _ in range(config.residual_blocks)]
    width = config.widths[-1]
    out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)
    return nn.Sequential(*layers, normalization(width), nn.SiLU(), out)


def _decoder(config: NetworkConfig) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, config.widths[-1], 3, padding=1)]
    for coarse, fine in pairwise((*reversed(config.widths), 1)):
        layers += [ResidualBlock(coarse, coarse) for _ in range(config.residual_blocks)]
        layers += [normalization(coarse), nn.SiLU(), Upsample(coarse, fine)]
    return nn.Sequential(*layers)


def _latent_size(config: NetworkConfig, image_size: int) -> int:
    factor = 1 << len(config.widths)
    if image_size % factor:
        raise ValueError(
            f"image_size = {image_size} is not divisible by {factor}, the down-sampling of the "
            f"{len(config.widths)} entries of network.widths. Ingest at a multiple of {factor}."
        )
    return image_size // factor
