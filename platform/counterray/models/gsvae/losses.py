"""Losses of `gsvae`, each by its equation; all take and give float32."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as functional
from pydantic import Field
from torch import Tensor

from counterray.config import Config
from counterray.nn.gaussian import kl_divergence
from counterray.nn.ssim import structural_similarity

KLReduction = Literal["per_element", "per_image"]


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


def reconstruction_loss(image: Tensor, reconstruction: Tensor, *, ssim_weight: float) -> Tensor:
    """``mean((x - x^)^2) + λ (1 - SSIM)``, a scalar (equation 4).

    Args:
        image: ``[B, 1, H, W]`` in [-1, 1].
        reconstruction: ``[B, 1, H, W]``.
        ssim_weight: λ.
    """
    squared_error = functional.mse_loss(reconstruction, image)
    return squared_error + ssim_weight * (1.0 - structural_similarity(reconstruction, image).mean())


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
