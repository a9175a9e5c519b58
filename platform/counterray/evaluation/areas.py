"""Anatomy kept: areas of lungs and heart against those of the exact counterfactual."""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLD = 0.5
"""Probability from which a pixel belongs to a structure."""


def areas(probabilities: Tensor) -> Tensor:
    """Number of pixels of each structure [px^2].

    Args:
        probabilities: ``[B, K, H, W]`` of a segmentor, or masks.

    Returns:
        ``[B, K]``.
    """
    return (probabilities > THRESHOLD).flatten(2).sum(dim=2).double()


def area_deviation(probabilities: Tensor, reference: Tensor) -> Tensor:
    """Relative deviation of areas, ``|a / a_reference - 1|``; 0 is best, 0.05 is five percent.

    Args:
        probabilities: ``[B, K, H, W]``, the segmentor's on the counterfactuals.
        reference: The same segmentor's on the exact counterfactuals, so that its own error cancels.

    Returns:
        ``[B, K]``; NaN where the reference has no such structure, since no ratio exists.
    """
    measured, expected = areas(probabilities), areas(reference)
    deviation = (measured / expected.clamp(min=1) - 1).abs()
    return torch.where(expected > 0, deviation, torch.full_like(deviation, torch.nan))
