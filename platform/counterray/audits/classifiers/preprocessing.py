"""From the platform's images to what a foreign network was trained on."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from counterray.config import Config


class Preprocessing(Config):
    """What a network was trained to see. Applied in this order: size, range, channels, mean and std."""

    size: int | None = Field(default=None, ge=1)
    """Edge of its square images [px], resized bilinearly with antialiasing; as they are by default."""
    channels: Literal[1, 3] = 1
    """Channels; three are the same grey image three times."""
    low: float = 0.0
    """Value of black."""
    high: float = 1.0
    """Value of white; below ``low`` for networks that see bone dark."""
    mean: tuple[float, ...] = ()
    """Subtracted from each channel; one number is for all; none by default."""
    std: tuple[float, ...] = ()
    """By which each channel is divided then; one number is for all; none by default."""

    @model_validator(mode="after")
    def _fitting(self) -> Preprocessing:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, self.channels):
                raise ValueError(f"{name} has {len(values)} numbers for {self.channels} channel(s)")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std {self.std} must be above 0")
        if self.low == self.high:
            raise ValueError(f"low and high are both {self.low:g}, which makes every image the same")
        return self

    def apply(self, image: Tensor) -> Tensor:
        """Images ``[N, channels, size, size]`` of images ``[N, 1, H, W]`` in [-1, 1]."""
        unit = resized((image.float() + 1) / 2, self.size)
        seen = (self.low + unit * (self.high - self.low)).expand(-1, self.channels, -1, -1)
        if self.mean:
            seen = seen - torch.tensor(self.mean).view(1, -1, 1, 1).to(seen)
        if self.std:
            seen = seen / torch.tensor(self.std).view(1, -1, 1, 1).to(seen)
        return seen.contiguous()


def resized(image: Tensor, size: int | None) -> Tensor:
    """Images ``[N, C, H, W]`` with edge ``size`` [px]; as they are where it is ``None`` or theirs already."""
    if size is None or tuple(image.shape[-2:]) == (size, size):
        return image
    return functional.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)
