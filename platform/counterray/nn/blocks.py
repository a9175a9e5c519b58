"""Convolutional blocks: GroupNorm and SiLU throughout, so that no statistics live between batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def normalization(channels: int) -> nn.GroupNorm:
    """GroupNorm with 8 groups, or as many as divide ``channels``.

    Unlike BatchNorm it has no running state, so small batches, an EMA and sharded training need no care.
    Reference: Wu & He, 2018, https://arxiv.org/abs/1803.08494
    """
    return nn.GroupNorm(math.gcd(channels, 8), channels)


class ResidualBlock(nn.Module):
    """Pre-activation residual block: norm, SiLU, 3×3, norm, SiLU, 3×3, plus the (projected) input.

    Reference: He et al., 2016, https://arxiv.org/abs/1603.05027, figure 4 (e), with GroupNorm and SiLU in
    place of BatchNorm and ReLU: the derivative is continuous, as losses on features need it.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.norm_in = normalization(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm_out = normalization(channels_out)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        reshapes = stride != 1 or channels_in != channels_out
        self.shortcut = (
            nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False) if reshapes else nn.Identity()
        )
        # He initialisation keeps the branch's variance; PyTorch's default shrinks it threefold a layer, and
        # small lesions are then learnt late.
        nn.init.kaiming_normal_(self.conv_in.weight)
        nn.init.kaiming_normal_(self.conv_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels_in, H, W]`` to ``[B, channels_out, H / stride, W / stride]``."""
        hidden = functional.silu(self.norm_in(x))
        # The projection reads the normalised activations, as in the reference's residual_unit.
        shortcut = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(hidden)
        hidden = functional.silu(self.norm_out(self.conv_in(hidden)))
        return torch.as_tensor(shortcut + self.conv_out(hidden))


class Upsample(nn.Module):
    """Nearest-neighbour doubling of height and width, then a 3×3 convolution (no checkerboard)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels_in, H, W]`` to ``[B, channels_out, 2H, 2W]``."""
        return torch.as_tensor(self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest")))


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """The type that ``module`` computes in, to which its inputs are cast (float32 or bfloat16)."""
    return next(module.parameters()).dtype


def channels_last(x: Tensor, module: nn.Module) -> Tensor:
    """``x`` ``[B, C, H, W]`` in the type of ``module``, laid out channel by channel for its convolutions.

    They keep the layout; with a U-Net's or a decoder's wide maps a CPU then takes a quarter less time. The
    parameters stay as they are, since engines that flatten or send them need them contiguous.
    """
    return x.to(dtype=parameter_dtype(module), memory_format=torch.channels_last)


def require_images(image: Tensor, image_size: int) -> None:
    """Refuses images of another size than a network was made for.

    Raises:
        ValueError: If ``image`` is not ``[B, 1, image_size, image_size]``.
    """
    if image.dim() != 4 or tuple(image.shape[1:]) != (1, image_size, image_size):
        raise ValueError(
            f"The network was made for images [B, 1, {image_size}, {image_size}], got "
            f"{list(image.shape)}; ingest at that size or use a judge trained at yours."
        )
