"""Perceptual distance: how differently a named judge's inner layers answer to two images."""

from __future__ import annotations

import torch
from torch import Tensor

from counterray.evaluation.counterfactuals import pieces
from counterray.evaluation.features import LayerJudge
from counterray.evaluation.metric import UnscorableError
from counterray.nn.perceptual import map_distance


@torch.no_grad()
def perceptual_distance(
    image: Tensor, reference: Tensor, judge: LayerJudge, *, batch_size: int = 64
) -> Tensor:
    """Distance of unit-normalised feature maps, over the layers of a judge.

    ``Σ_l mean_{h,w} |ŷ_l(h,w) - ŷ⁰_l(h,w)|²``, with ``ŷ`` each position's channels scaled to unit length.
    0 is equal (best), 4 per layer the most. It is not LPIPS: there are no weights learned from people's
    judgements, and the network is the named judge.

    Args:
        image: ``[B, 1, H, W]`` in [-1, 1].
        reference: As ``image``.
        judge: Whose layers are compared.
        batch_size: Images at a time.

    Returns:
        ``[B]`` in float64.

    Raises:
        ValueError: If the shapes differ.
        UnscorableError: If a response is not finite.

    Reference: Zhang et al., 2018, https://arxiv.org/abs/1801.03924, equation 1 with all weights w_l = 1.
    """
    if image.shape != reference.shape:
        raise ValueError(
            f"Images of shape {tuple(image.shape)} cannot be compared with {tuple(reference.shape)}; "
            "resize one of them first."
        )
    distance = torch.cat(
        [_distance(image[rows], reference[rows], judge) for rows in pieces(len(image), batch_size)]
    )
    if not torch.isfinite(distance).all():
        wrong = int((~torch.isfinite(distance)).sum())
        raise UnscorableError(
            f"Judge {judge.label}: layers of {wrong} of {len(distance)} images are not finite."
        )
    return distance


def _distance(image: Tensor, reference: Tensor, judge: LayerJudge) -> Tensor:
    ours, theirs = ([maps.double() for maps in judge.layers(part)] for part in (image, reference))
    return map_distance(ours, theirs).cpu()
