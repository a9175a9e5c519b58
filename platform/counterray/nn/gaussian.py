"""Diagonal Gaussian posteriors of variational autoencoders."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_VARIANCE_RANGE = (-12.0, 8.0)
"""Bounds of a posterior's log-variance, so that its exponential is finite in every float type."""


def reparameterise(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A draw ``mean + exp(log_variance / 2) * e``, e standard normal from torch's global random state."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """``KL(N(m, v) || N(0, 1)) = (m^2 + v - log v - 1) / 2`` of each element [nats]."""
    return 0.5 * (mean**2 + log_variance.exp() - log_variance - 1.0)
