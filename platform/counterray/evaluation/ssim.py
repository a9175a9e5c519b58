"""Structural similarity."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity index: how alike local brightness, contrast and structure are.

    Per pixel ``(2 μ_a μ_b + c_1)(2 σ_ab + c_2) / ((μ_a² + μ_b² + c_1)(σ_a² + σ_b² + c_2))`` under an
    11 × 11 Gaussian window (σ = 1.5 px), averaged over the image. 1 is equal (best), 0 is unrelated.

    Args:
        image: ``[B, 1, H, W]`` in [-1, 1], H and W above 11.
        reference: As ``image``.

    Returns:
        ``[B]`` in [-1, 1].

    Reference: Wang et al., 2004, https://doi.org/10.1109/TIP.2003.819861, equation 13.
    """
    value = structural_similarity_index_measure(image, reference, data_range=2.0, reduction="none")
    assert isinstance(value, Tensor)  # a pair only where the full image is asked for
    # Clamped because of rounding: of equal images, torchmetrics gives 1.0000001.
    return value.reshape(len(image)).clamp(-1, 1)
