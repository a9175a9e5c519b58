"""Losses of `gsvae`, each by its equation; all take and give float32."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as functional
from pydantic import Field
from torch import Tensor

from counterray.config import Config

KLReduction = Literal["per_element", "per_image"]

WINDOW_SIZE, WINDOW_SIGMA = 11, 1.5
"""SSIM's Gaussian window [px] (Wang et al., 2004, section III.C)."""


class LossWeights(Config):
    """Weights of equations 4 and 10; 0 switches a term off (the arms of table 4)."""

    ssim: float = Field(default=0.01, ge=0.0)
    """λ of 1 - SSIM in the reconstruction (equation 4)."""
    kl: float = Field(default=0.1, gt=0.0)
    """α of the divergence from N(0, I) (equation 5); its scale depends on ``kl_reduction``."""
    classification: float = Field(default=5.0, ge=0.0)
    """β of the findings predicted from z^n (equation 6)."""
    identity: float = Field(default=1.0, ge=0.0)
    """γ of the identity distance after a swap (equation 7); 0 needs no identity judge."""
    pathology: float = Field(default=2.5, ge=0.0)
    """δ of the pathology distance after a swap (equation 8); 0 needs no pathology judge."""


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean structural similarity of images in [-1, 1] (data range 2), ``[B]``; 1 is equality.

    The same number as torchmetrics' (Gaussian window, reflected borders), several times faster on a CPU:
    the window is separable, so it is two banded matrix products instead of a convolution of one channel.

    Args:
        first: ``[B, 1, H, W]``.
        second: ``[B, 1, H, W]``.

    Reference: Wang et al., Image quality assessment, 2004, equation 13.
    """
    stability_mean, stability_variance = (0.01 * 2.0) ** 2, (0.03 * 2.0) ** 2
    maps = torch.stack([first, second, first**2, second**2, first * second])
    rows, columns = _window(first.shape[-2]).to(first), _window(first.shape[-1]).to(first)
    mean_1, mean_2, square_1, square_2, product = rows @ maps @ columns.T
    covariance = product - mean_1 * mean_2
    variances = (square_1 - mean_1**2).clamp(min=0) + (square_2 - mean_2**2).clamp(min=0)
    luminance: Tensor = (2 * mean_1 * mean_2 + stability_mean) / (mean_1**2 + mean_2**2 + stability_mean)
    structure: Tensor = (2 * covariance + stability_variance) / (variances + stability_variance)
    return (luminance * structure).mean(dim=(1, 2, 3))


@lru_cache(maxsize=8)
def _window(size: int) -> Tensor:
    """Matrix ``[size, size]`` that applies the Gaussian window along one axis, borders reflected."""
    radius = WINDOW_SIZE // 2
    if size <= radius:
        raise ValueError(f"SSIM needs images of more than {radius} px; an edge has {size}.")
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    positions = torch.arange(size)[:, None] + offsets
    positions = positions.abs()
    positions = torch.where(positions < size, positions, 2 * (size - 1) - positions)
    return torch.zeros(size, size).scatter_add_(1, positions, (weights / weights.sum()).expand(size, -1))


def reconstruction_loss(image: Tensor, reconstruction: Tensor, *, ssim_weight: float) -> Tensor:
    """``mean((x - x^)^2) + λ (1 - SSIM)``, a scalar (equation 4).

    Args:
        image: ``[B, 1, H, W]`` in [-1, 1].
        reconstruction: ``[B, 1, H, W]``.
        ssim_weight: λ.
    """
    squared_error = functional.mse_loss(reconstruction, image)
    return squared_error + ssim_weight * (1.0 - structural_similarity(reconstruction, image).mean())


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """``KL(N(m, v) || N(0, 1)) = (m^2 + v - log v - 1) / 2`` of each element [nats] (equation 5)."""
    return 0.5 * (mean**2 + log_variance.exp() - log_variance - 1.0)


def kl_loss(mean: Tensor, log_variance: Tensor, *, reduction: KLReduction) -> Tensor:
    """Divergence from the prior, a scalar [nats].

    Args:
        mean: ``[B, n, h, w]``.
        log_variance: ``[B, n, h, w]``.
        reduction: ``per_element``: mean over all elements, so that α means the same at any resolution (our
            reading, the paper does not say); ``per_image``: sum over an image's elements, mean over images.
    """
    divergence = kl_divergence(mean, log_variance)
    return divergence.mean() if reduction == "per_element" else divergence.sum(dim=(1, 2, 3)).mean()


def feature_distance(features: Tensor, target: Tensor) -> Tensor:
    """Squared distance of unit-length features, mean over the batch, in [0, 4] (equations 7 and 8).

    Features are brought to unit length, so that γ and δ mean the same whatever judge gives them; the
    paper's extractors are fixed and it says nothing of their scale.

    Args:
        features: ``[B, D]`` of the swapped images.
        target: ``[B, D]`` of the images whose identity or pathology they should have.
    """
    difference = functional.normalize(features.float(), dim=1) - functional.normalize(target.float(), dim=1)
    return difference.square().sum(dim=1).mean()


def random_partners(batch_size: int, device: torch.device) -> Tensor:
    """A random partner for each image of a batch, never itself, ``[B]`` long.

    Images are paired, so that both directions of a swap are trained; of an odd batch, three form a cycle.
    Any two images may meet: the paper pairs arbitrary ones. Uses torch's global random state.

    Raises:
        ValueError: If the batch has fewer than two images.
    """
    if batch_size < 2:
        raise ValueError(
            f"A group step swaps pathology between images of a batch, which has {batch_size}; set the batch "
            "size to at least 2 and drop a smaller last batch."
        )
    order = torch.randperm(batch_size, device=device)
    paired = order[: batch_size - batch_size % 2].view(-1, 2)
    partner = torch.empty_like(order)
    partner[paired] = paired.flip(1)
    if batch_size % 2:
        last, (first, second) = order[-1], paired[-1]
        partner[second], partner[last] = last, first
    return partner
