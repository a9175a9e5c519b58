"""Peak signal-to-noise ratio."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, ``10 log10(4 / mean squared error)`` for images in [-1, 1].

    Higher is better; equal images have an infinite ratio.

    Args:
        image: ``[B, 1, H, W]`` in [-1, 1].
        reference: As ``image``.

    Returns:
        ``[B]`` [dB].
    """
    value: Tensor = peak_signal_noise_ratio(image, reference, data_range=2.0, reduction="none", dim=(1, 2, 3))
    return value.reshape(len(image))
