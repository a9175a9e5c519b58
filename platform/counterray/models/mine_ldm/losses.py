"""Losses of the autoencoder of `mine_ldm`; all take and give float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from counterray.config import Config
from counterray.models.mine_ldm.vae import Decoded, Posterior
from counterray.nn.gaussian import kl_divergence
from counterray.nn.perceptual import map_distance
from counterray.nn.ssim import structural_similarity

Layers = Callable[[Tensor], Sequence[Tensor]]
"""Images ``[B, 1, H, W]`` to a frozen network's feature maps, through which gradients flow."""

HALF_WEIGHT = 0.5
"""Weight of the output at half resolution beside 1 for the whole one; the sum of both is brought to 1."""


class VAELossWeights(Config):
    """Weights of the reconstruction and of the divergence; the defaults are the published ones."""

    absolute: float = Field(default=1.0, ge=0.0)
    """Of the mean absolute error of a pixel."""
    perceptual: float = Field(default=1.0, ge=0.0)
    """Of the distance between a frozen judge's feature maps, in place of VGG's; 0 needs no judge."""
    ssim: float = Field(default=1.0, ge=0.0)
    """Of 1 - SSIM."""
    kl: float = Field(default=1e-6, ge=0.0)
    """β: of the divergence [nats] beside the *sum* over pixels of the reconstruction. With ``absolute`` 1 it
    is the β of a β-VAE whose pixels are Laplacian with scale 1 (Higgins et al., 2017,
    https://openreview.net/forum?id=Sy2fzU9gl)."""


def image_losses(
    image: Tensor, output: Tensor, *, layers: Layers | None, size: int | None = None
) -> dict[str, Tensor]:
    """``absolute``, ``perceptual`` (0 without a judge) and ``ssim`` (1 - SSIM), scalars, lower is better.

    Args:
        image: ``[B, 1, h, w]`` in [-1, 1].
        output: ``[B, 1, h, w]``.
        layers: The judge.
        size: Edge to which both are brought for the judge, where it was made for another [px].
    """
    judged = image.new_zeros(())
    if layers is not None:
        pair = [image, output]
        if size is not None:
            pair = [functional.interpolate(part, size=size, mode="bilinear") for part in pair]
        judged = map_distance(layers(pair[1]), layers(pair[0])).mean()
    return {
        "absolute": functional.l1_loss(output, image),
        "perceptual": judged,
        "ssim": 1.0 - structural_similarity(output, image).mean(),
    }


def vae_losses(
    image: Tensor, posterior: Posterior, decoded: Decoded, weights: VAELossWeights, layers: Layers | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """``Σ_r v_r (L1 + perceptual + 1 - SSIM) + β KL / HW``, and its unweighted parts at full resolution.

    The published loss sums over pixels, each of which is given its image's perceptual distance and SSIM; this
    is that sum over the HW pixels of an image. r runs over both resolutions.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, section 3.2, and their code.
    """
    judge = layers if weights.perceptual else None
    whole = image_losses(image, decoded.image, layers=judge)
    small = functional.interpolate(image, size=decoded.half.shape[-1], mode="area")
    half = image_losses(small, decoded.half, layers=judge, size=image.shape[-1])
    divergence = kl_divergence(posterior.mean, posterior.log_variance).sum((1, 2, 3)).mean()
    total = weights.kl * divergence / image[0].numel()
    for name in whole:
        both = (whole[name] + HALF_WEIGHT * half[name]) / (1.0 + HALF_WEIGHT)
        total = total + getattr(weights, name) * both
    return total, {**whole, "kl": divergence}
