"""A residual convolutional network that turns an image into feature maps of falling resolution."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from counterray.config import Config
from counterray.nn.blocks import ResidualBlock, parameter_dtype, require_images


class BackboneConfig(Config):
    """Size of a `Backbone`. The default suits 64×64 on one CPU core.

    For 224×224 and more, ``widths: [64, 128, 256, 512]`` and ``blocks: [2, 2, 2, 2]`` give 11 M parameters
    (DenseNet-121 has 8 M).
    """

    widths: tuple[int, ...] = Field(default=(32, 64, 128), min_length=1)
    """Channels of each stage; each stage after the first halves height and width."""
    blocks: tuple[int, ...] = Field(default=(1, 1, 1), min_length=1)
    """Residual blocks of each stage."""
    stem_stride: Literal[1, 2, 4] = 4
    """Reduction of height and width before the first stage."""

    @model_validator(mode="after")
    def _same_length(self) -> BackboneConfig:
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths has {len(self.widths)} stages, blocks has {len(self.blocks)}; give each stage both"
            )
        if min(self.widths) < 1 or min(self.blocks) < 1:
            raise ValueError(f"widths {self.widths} and blocks {self.blocks} must be 1 or more everywhere")
        return self


class Backbone(nn.Module):
    """Stem and residual stages over single-channel images of a fixed size, averaged over space.

    The average is taken before the last normalisation, over the channels of an image alone: a GroupNorm over
    space before it would take away what differs between images as a whole, such as how noisy they are.

    Attributes:
        image_size: Edge of the square images it was made for [px].
        width: Number of pooled features.
    """

    def __init__(self, config: BackboneConfig, image_size: int) -> None:
        super().__init__()
        reduction = config.stem_stride * 2 ** (len(config.widths) - 1)
        if image_size % reduction:
            raise ValueError(
                f"The image size ({image_size} px) must be divisible by stem_stride × 2^(stages − 1) = "
                f"{reduction}; use fewer widths or another image size."
            )
        self.image_size = image_size
        self.width = config.widths[-1]
        stride = config.stem_stride
        self.stem = nn.Conv2d(
            1, config.widths[0], 2 * stride - 1 if stride > 1 else 3, stride, stride - 1 or 1
        )
        self.stages = nn.ModuleList()
        channels = config.widths[0]
        for index, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            layers = [ResidualBlock(channels, width, stride=2 if index else 1)]
            layers += [ResidualBlock(width, width) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*layers))
            channels = width
        self.norm = nn.LayerNorm(channels)

    def maps(self, image: Tensor) -> list[Tensor]:
        """Feature maps after each stage, ``[B, C, H, W]`` from fine to coarse.

        Raises:
            ValueError: If ``image`` is not ``[B, 1, image_size, image_size]``.
        """
        require_images(image, self.image_size)
        hidden = self.stem(image.to(parameter_dtype(self)))
        maps = []
        for stage in self.stages:
            hidden = stage(hidden)
            maps.append(hidden)
        return maps

    def forward(self, image: Tensor) -> Tensor:
        """Pooled features ``[B, width]`` of images ``[B, 1, H, W]`` in [-1, 1]."""
        return torch.as_tensor(self.norm(self.maps(image)[-1].mean(dim=(2, 3))))
