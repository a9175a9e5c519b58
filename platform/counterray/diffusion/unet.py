"""The denoiser of latents: diffusers' UNet with cross-attention to a text's states."""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field, model_validator
from torch import Tensor, nn

from counterray.config import Config
from counterray.nn.blocks import parameter_dtype
from counterray.nn.text import TextStates


class DenoiserConfig(Config):
    """Size of a `LatentDenoiser`. The default suits 16×16 latents on one CPU core.

    The paper's, for 64×64 latents, is ``widths: [192, 384, 576]``, ``layers_per_block: 2``,
    ``norm_groups: 32`` and ``head_width: 64``: 148 M parameters with texts of width 768.
    """

    widths: tuple[int, ...] = Field(default=(24, 48, 64), min_length=2)
    """Channels of each level; each level after the first halves height and width and attends to the text."""
    layers_per_block: int = Field(default=1, ge=1)
    """Residual blocks of each level on the way down; one more on the way up."""
    head_width: int = Field(default=16, ge=1)
    """Channels of one attention head."""
    norm_groups: int = Field(default=8, ge=1)
    """Groups of GroupNorm."""

    @model_validator(mode="after")
    def _divisible(self) -> DenoiserConfig:
        for setting, divisor, widths in (
            ("norm_groups", self.norm_groups, self.widths),
            ("head_width", self.head_width, self.widths[1:]),
        ):
            if wrong := [width for width in widths if width < 1 or width % divisor]:
                raise ValueError(f"widths {wrong} must be positive multiples of {setting} = {divisor}")
        return self


class LatentDenoiser(nn.Module):
    """A `Denoiser`: noisy latents, timesteps and a text's states to noise or velocity.

    Attributes:
        unet: The network.

    Reference: Rombach et al., 2022, https://arxiv.org/abs/2112.10752, section 3.3.

    Args:
        config: Its size.
        channels: C, channels of a latent.
        size: Edge h = w of a latent.
        text_width: D, channels of a text's states.

    Raises:
        ValueError: If the latents cannot be halved as often as there are levels.
    """

    def __init__(self, config: DenoiserConfig, *, channels: int, size: int, text_width: int) -> None:
        super().__init__()
        levels = len(config.widths)
        if size % 2 ** (levels - 1):
            raise ValueError(
                f"The latents' size ({size}) must be divisible by 2^(levels - 1) = {2 ** (levels - 1)}; use "
                f"fewer than {levels} widths or another image size."
            )
        self.unet = UNet2DConditionModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=config.widths,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (levels - 1)),
            up_block_types=(*["CrossAttnUpBlock2D"] * (levels - 1), "UpBlock2D"),
            layers_per_block=config.layers_per_block,
            cross_attention_dim=text_width,
            # diffusers reads this as the number of heads, whatever its name says.
            attention_head_dim=tuple(max(1, width // config.head_width) for width in config.widths),
            norm_num_groups=config.norm_groups,
        )

    def forward(self, noisy: Tensor, timestep: Tensor, condition: TextStates | None) -> Tensor:
        """Output ``[B, C, h, w]`` (float32) for latents ``[B, C, h, w]`` at timesteps ``[B]`` or ``[]``.

        Raises:
            ValueError: If there is no condition.
        """
        if condition is None:
            raise ValueError("The denoiser was made for texts; give it the empty text's states for no text.")
        dtype = parameter_dtype(self)
        output = self.unet(
            noisy.to(dtype),
            timestep,
            condition.states.to(dtype),
            encoder_attention_mask=condition.present,
            return_dict=False,
        )
        return torch.as_tensor(output[0]).float()
