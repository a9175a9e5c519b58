"""Random changes of images that leave patient and findings what they are; from torch's global generator.

Images are ``[B, 1, H, W]`` in [-1, 1], and every image of a batch is changed by its own draw.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def augment(image: Tensor) -> Tensor:
    """A light change of position and of exposure."""
    return vary_exposure(move(image))


def move(image: Tensor, *, shift: float = 0.03, scale: float = 0.02, degrees: float = 3.0) -> Tensor:
    """Shifts, scales and rotates slightly; what enters at the border repeats the border.

    Never mirrors: a chest's sides differ.

    Args:
        image: ``[B, 1, H, W]``.
        shift: Largest displacement as a fraction of the edge.
        scale: Largest relative change of size.
        degrees: Largest rotation.
    """
    angle = _uniform(image, -degrees, degrees) * (math.pi / 180)
    size = 1 + _uniform(image, -scale, scale)
    theta = torch.zeros(len(image), 2, 3, device=image.device)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() * size
    theta[:, 1, 0] = angle.sin() * size
    theta[:, 0, 1] = -theta[:, 1, 0]
    # Grid coordinates span 2 from border to border.
    theta[:, 0, 2] = _uniform(image, -2 * shift, 2 * shift)
    theta[:, 1, 2] = _uniform(image, -2 * shift, 2 * shift)
    grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
    return functional.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)


def translate(image: Tensor, *, shift: float = 0.03) -> Tensor:
    """Shifts by whole pixels, which leaves noise and sharpness as they are; the border repeats.

    Args:
        image: ``[B, 1, H, W]``.
        shift: Largest displacement as a fraction of the edge.
    """
    height, width = image.shape[-2:]
    down = (_uniform(image, -shift, shift) * height).round().long()
    right = (_uniform(image, -shift, shift) * width).round().long()
    rows = (torch.arange(height, device=image.device) + down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=image.device) + right[:, None]).clamp(0, width - 1)
    index = torch.arange(len(image), device=image.device)[:, None, None]
    return image[index, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def vary_exposure(image: Tensor, *, gamma: float = 0.15, noise: float = 0.02, blur: float = 0.5) -> Tensor:
    """Changes gamma, sharpness and noise, as another scanner or exposure would.

    Args:
        image: ``[B, 1, H, W]``.
        gamma: Largest absolute logarithm of the gamma applied.
        noise: Largest standard deviation of the added Gaussian noise.
        blur: Largest weight of a 3×3 binomial blur.
    """
    exponent = _uniform(image, -gamma, gamma).exp().view(-1, 1, 1, 1)
    # The floor keeps the power's value and derivative finite at black.
    changed = ((image.float() + 1) / 2).clamp(1e-4, 1) ** exponent * 2 - 1
    line = torch.tensor([0.25, 0.5, 0.25], device=image.device)
    kernel = torch.outer(line, line).view(1, 1, 3, 3)
    blurred = functional.conv2d(functional.pad(changed, (1, 1, 1, 1), mode="replicate"), kernel)
    weight = _uniform(image, 0, blur).view(-1, 1, 1, 1)
    changed = torch.lerp(changed, blurred, weight)
    deviation = _uniform(image, 0, noise).view(-1, 1, 1, 1)
    return (changed + deviation * torch.randn_like(changed)).clamp(-1, 1)


def paint_lesions(image: Tensor, *, count: int = 2, amplitude: float = 0.5, radius: float = 0.15) -> Tensor:
    """Adds soft bright or dark spots, so that a network learns to look past local pathology.

    Args:
        image: ``[B, 1, H, W]``.
        count: Spots per image.
        amplitude: Largest absolute change at a spot's centre.
        radius: Largest standard deviation of a spot, as a fraction of the edge.
    """
    height, width = image.shape[-2:]
    rows = torch.linspace(0, 1, height, device=image.device).view(1, 1, height, 1)
    columns = torch.linspace(0, 1, width, device=image.device).view(1, 1, 1, width)
    changed = image.float()
    for _ in range(count):
        row, column, strength, spread_rows, spread_columns = (
            _uniform(image, low, high).view(-1, 1, 1, 1)
            for low, high in ((0, 1), (0, 1), (-amplitude, amplitude), (0.05, radius), (0.05, radius))
        )
        distance = ((rows - row) / spread_rows) ** 2 + ((columns - column) / spread_columns) ** 2
        changed = changed + strength * (-distance / 2).exp()
    return changed.clamp(-1, 1)


def _uniform(image: Tensor, low: float, high: float) -> Tensor:
    """One draw per image, ``[B]``."""
    return low + (high - low) * torch.rand(len(image), device=image.device)
