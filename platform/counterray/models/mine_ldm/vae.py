"""The autoencoder of `mine_ldm`: images to latents of unit variance and back, by itself or given attributes.

Letters: B images, C latent channels, H x W pixels, h x w latent positions, K levels of all attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from counterray.config import Config
from counterray.models.mine_ldm.attributes import AttributeSpace, as_maps
from counterray.nn.blocks import ResidualBlock, Upsample, normalization, parameter_dtype, require_images
from counterray.nn.gaussian import LOG_VARIANCE_RANGE, reparameterise

MOMENTUM = 0.02
"""Least weight of a batch in the running moments of the latents: a memory of about 50 batches. The first
batches weigh alike."""


class VAENetworkConfig(Config):
    """Sizes of an `AttributeVAE`; the defaults are the published ones (latents of 32×32×8 at 256 px)."""

    latent_channels: int = Field(default=8, ge=1)
    """C."""
    widths: tuple[int, ...] = Field(default=(64, 128, 256, 512), min_length=1)
    """Feature maps of each level, the finest first."""
    strides: tuple[int, ...] = (1, 2, 2, 2)
    """1 or 2: whether a level halves the resolution of the one before it."""

    @model_validator(mode="after")
    def _fit(self) -> VAENetworkConfig:
        if len(self.widths) != len(self.strides) or set(self.strides) - {1, 2} or 2 not in self.strides:
            raise ValueError(
                f"strides {self.strides} must give 1 or 2 for each of widths {self.widths}, 2 at least once"
            )
        return self


@dataclass(frozen=True)
class Posterior:
    """q(z | x): ``mean`` and ``log_variance``, each ``[B, C, h, w]`` float32."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class Decoded:
    """Images ``[B, 1, H, W]`` in float32, and the same at half resolution ``[B, 1, H/2, W/2]``."""

    image: Tensor
    half: Tensor


class AttributeVAE(nn.Module):
    """A convolutional VAE with GroupNorm, Swish and deep supervision at half resolution.

    It keeps running moments of its latents' means, so that those who work on latents get them with mean 0 and
    variance 1 (`standardise`): at the published weight of the divergence nothing else fixes their scale.

    Args:
        config: Sizes.
        image_size: Edge of the square images [px].
        space: The attributes that encoder and decoder are told as constant maps beside their input; ``None``
            for a VAE that knows none.

    Raises:
        ValueError: If ``image_size`` cannot be halved as often as ``strides`` say.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, section 3.2 and table 4. The text speaks of
        attention and skip connections, the code has neither, and neither has this: connections from encoder
        to decoder would carry the attribute past the latent.
    """

    latent_mean: Tensor
    latent_variance: Tensor
    observed: Tensor

    def __init__(
        self, config: VAENetworkConfig, *, image_size: int, space: AttributeSpace | None = None
    ) -> None:
        super().__init__()
        factor = 2 ** config.strides.count(2)
        if image_size % factor:
            raise ValueError(
                f"image_size = {image_size} is not divisible by {factor}, the down-sampling of "
                f"network.strides. Ingest at a multiple of {factor}."
            )
        self.image_size, self.space = image_size, space
        self.latent_shape = (config.latent_channels, image_size // factor, image_size // factor)
        told = sum(space.sizes) if space else 0
        self.encoder = _encoder(config, 1 + told)
        self.decoder = _Decoder(config, config.latent_channels + told)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_variance", torch.ones(config.latent_channels))
        self.register_buffer("observed", torch.zeros((), dtype=torch.long))

    def forward(self, image: Tensor, codes: Tensor | None = None) -> tuple[Posterior, Decoded]:
        """Posterior, and the images of a draw from it; in training the running moments move.

        Args:
            image: ``[B, 1, H, W]`` in [-1, 1].
            codes: ``[B, m]``, see `AttributeSpace.codes`; not read where no attributes are told.
        """
        posterior = self.encode(image, codes)
        if self.training:
            self._observe(posterior.mean.detach())
        return posterior, self.decode_all(reparameterise(posterior.mean, posterior.log_variance), codes)

    def encode(self, image: Tensor, codes: Tensor | None = None) -> Posterior:
        """The posterior of images ``[B, 1, H, W]``.

        Raises:
            ValueError: If ``image`` is not of the size that the network was made for.
        """
        require_images(image, self.image_size)
        told = self._told(image.to(parameter_dtype(self)), codes)
        mean, log_variance = self.encoder(told).float().chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def decode_all(self, latent: Tensor, codes: Tensor | None = None) -> Decoded:
        """Images of latents ``[B, C, h, w]`` at both resolutions; differentiable."""
        image, half = self.decoder(self._told(latent.to(parameter_dtype(self)), codes))
        return Decoded(image.float(), half.float())

    def decode(self, latent: Tensor, codes: Tensor | None = None) -> Tensor:
        """Images ``[B, 1, H, W]`` in [-1, 1]."""
        return self.decode_all(latent, codes).image.clamp(-1.0, 1.0)

    def standardise(self, latent: Tensor) -> Tensor:
        """U of z ``[B, C, h, w]``: mean 0 and variance 1 in each channel over training images."""
        mean, deviation = self._moments()
        return (latent.float() - mean) / deviation

    def restore(self, standard: Tensor) -> Tensor:
        """Z of u ``[B, C, h, w]``."""
        mean, deviation = self._moments()
        return standard * deviation + mean

    def _moments(self) -> tuple[Tensor, Tensor]:
        deviation = self.latent_variance.float().clamp(min=1e-8).sqrt()
        return self.latent_mean.float()[:, None, None], deviation[:, None, None]

    @torch.no_grad()
    def _observe(self, mean: Tensor) -> None:
        centre, spread = mean.mean((0, 2, 3)), mean.var((0, 2, 3), unbiased=False)
        self.observed += 1
        rate = (1.0 / self.observed).clamp(min=MOMENTUM)
        self.latent_mean.copy_(self.latent_mean.float().lerp(centre, rate))
        self.latent_variance.copy_(self.latent_variance.float().lerp(spread, rate))

    def _told(self, maps: Tensor, codes: Tensor | None) -> Tensor:
        if self.space is None:
            return maps
        if codes is None:
            raise ValueError("This VAE is told attributes: give their codes.")
        return torch.cat([maps, as_maps(self.space.one_hot(codes), maps)], dim=1)


class _Decoder(nn.Module):
    """Latents to images, with a second output where the resolution is half of the image's."""

    def __init__(self, config: VAENetworkConfig, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, config.widths[-1], 3, padding=1)
        self.levels, self.half_level = nn.ModuleList(), -1
        halvings, widths = config.strides.count(2), [config.widths[0], *config.widths]
        for level, (fine, coarse) in reversed(list(enumerate(pairwise(widths)))):
            stride = config.strides[level]
            rise = Upsample(coarse, fine) if stride == 2 else nn.Conv2d(coarse, fine, 3, padding=1)
            self.levels.append(
                nn.Sequential(ResidualBlock(coarse, coarse), normalization(coarse), nn.SiLU(), rise)
            )
            if stride == 2 and halvings == 1:
                self.half_level, half_width = len(self.levels) - 1, coarse
            halvings -= stride == 2
        self.half_head, self.head = _head(half_width), _head(config.widths[0])

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.stem(latent)
        for index, level in enumerate(self.levels):
            if index == self.half_level:
                half = self.half_head(hidden)
            hidden = level(hidden)
        return self.head(hidden), half


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(normalization(width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))


def _encoder(config: VAENetworkConfig, channels: int) -> nn.Sequential:
    first = config.strides[0]
    layers: list[nn.Module] = [
        nn.Conv2d(channels, config.widths[0], 3 if first == 1 else 4, stride=first, padding=1),
        ResidualBlock(config.widths[0], config.widths[0]),
    ]
    for (fine, coarse), stride in zip(pairwise(config.widths), config.strides[1:], strict=True):
        layers.append(ResidualBlock(fine, coarse, stride=stride))
    width = config.widths[-1]
    out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)
    return nn.Sequential(*layers, normalization(width), nn.SiLU(), out)
