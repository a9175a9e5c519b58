"""ResNet-18, as published: the diagnostic network that others train on their images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and ReLU, plus the input, projected where its shape changes.

    Reference: He et al., 2016, https://arxiv.org/abs/1512.03385, figure 2; projection: its option B.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm_in = nn.BatchNorm2d(channels_out)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm_out = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels_in, H, W]`` to ``[B, channels_out, H / stride, W / stride]``."""
        hidden = functional.relu(self.norm_in(self.conv_in(x)))
        return functional.relu(self.norm_out(self.conv_out(hidden)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for grey images: a 7×7 stem of stride 2, a maximum, four stages of two blocks, the mean.

    Unlike `Backbone` it is the published network (BatchNorm, ReLU, post-activation), so that numbers of it
    compare with others'; its BatchNorm ties the images of a training batch together.

    Args:
        outputs: Number of logits.
        width: Channels of the first stage; each further stage has twice as many. 64 is the published
            network (11.2 M parameters), 16 suits a CPU (0.7 M).

    Reference: He et al., 2016, https://arxiv.org/abs/1512.03385, table 1; initialisation: He et al., 2015,
        https://arxiv.org/abs/1502.01852, equation 14.
    """

    def __init__(self, outputs: int, *, width: int = 64) -> None:
        super().__init__()
        if outputs < 1 or width < 1:
            raise ValueError(f"ResNet-18: outputs ({outputs}) and width ({width}) must be 1 or more.")
        self.stem = nn.Conv2d(1, width, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    BasicBlock(channels[stage], channels[stage + 1], stride=2 if stage else 1),
                    BasicBlock(channels[stage + 1], channels[stage + 1]),
                )
                for stage in range(4)
            )
        )
        self.head = nn.Linear(8 * width, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B, outputs]`` of images ``[B, 1, H, W]`` in [-1, 1]."""
        hidden = self.pool(functional.relu(self.norm(self.stem(image))))
        return torch.as_tensor(self.head(self.stages(hidden).mean(dim=(2, 3))))
