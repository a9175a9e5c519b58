"""Perceptual distance: how differently a network's inner layers answer to two images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

TINY = 1e-10
"""Least length that a vector is divided by, so that a position without any response stays 0."""


def map_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """``Σ_l mean_{h,w} |ŷ_l(h,w) - ŷ⁰_l(h,w)|²`` with each position's channels scaled to unit length.

    0 is equal, 4 per layer the most. It is not LPIPS: no weights were learned from people's judgements.

    Args:
        ours: Feature maps ``[B, C, h, w]`` of one set of images, a tensor for each layer l.
        theirs: The same of the other.

    Returns:
        ``[B]``; differentiable.

    Reference: Zhang et al., 2018, https://arxiv.org/abs/1801.03924, equation 1 with all weights w_l = 1.
    """
    layers = [
        (normalize(one, dim=1, eps=TINY) - normalize(other, dim=1, eps=TINY)).square().sum(1).mean((1, 2))
        for one, other in zip(ours, theirs, strict=True)
    ]
    return torch.stack(layers).sum(dim=0)
