"""Distance between images, pixel by pixel."""

from __future__ import annotations

from torch import Tensor


def mean_absolute_error(image: Tensor, reference: Tensor, *, region: Tensor | None = None) -> Tensor:
    """Mean absolute difference of grey values, as a share of the full grey range.

    ``mean_p |a_p - b_p| / 2`` for images in [-1, 1]: 0 is equal (best), 1 is black against white.

    Args:
        image: ``[B, 1, H, W]`` in [-1, 1].
        reference: As ``image``.
        region: ``[B, 1, H, W]`` bool: only these pixels count.

    Returns:
        ``[B]`` in [0, 1]; NaN where an image's region is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    if image.shape != reference.shape:
        raise ValueError(
            f"Images of shape {tuple(image.shape)} cannot be compared with {tuple(reference.shape)}; "
            "resize one of them first."
        )
    error = (image - reference).abs().flatten(1) / 2
    if region is None:
        return error.mean(dim=1)
    weight = region.flatten(1).to(error.dtype)
    return (error * weight).sum(dim=1) / weight.sum(dim=1)
