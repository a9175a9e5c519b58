"""What `pathology_ldm` trains: a denoiser of standardised pathology channels, and the null prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from counterray.diffusion.unet import DenoiserConfig, LatentDenoiser
from counterray.nn.text import TextStates


class PathologyDenoiser(nn.Module):
    """A `Denoiser` of z^n, with what turns z^n into its input and back.

    ``u = (z^n - m) / s`` has mean 0 and variance 1 over the training split, as the noise schedule assumes
    (the part that Stable Diffusion's 0.18215 plays).

    Args:
        config: Size of the denoiser.
        size: Edge of z^n [latent positions].
        mean: m.
        std: s, above 0.
        null: States of the empty prompt, one row.

    Attributes:
        size: Edge of z^n.
        null: As given.

    Raises:
        ValueError: If z^n does not vary, as then it carries nothing.

    Reference: Nie et al., equations 15 and 16; Rombach et al., 2022, https://arxiv.org/abs/2112.10752.
    """

    def __init__(
        self, config: DenoiserConfig, *, size: int, mean: float, std: float, null: TextStates
    ) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(
                f"z^n has a standard deviation of {std:g} over the training split: the gsvae has put nothing "
                "into it. Train gsvae with the pathology loss (weights.pathology) first."
            )
        # Plain numbers and states, no buffers: an engine that trains in bf16 would round those.
        self.size, self.mean, self.std, self.null = size, float(mean), float(std), null
        self.denoiser = LatentDenoiser(config, channels=1, size=size, text_width=null.states.shape[2])

    def forward(self, noisy: Tensor, timestep: Tensor, condition: TextStates | None) -> Tensor:
        """Output ``[B, 1, h, w]``, float32; see `Denoiser`."""
        return torch.as_tensor(self.denoiser(noisy, timestep, condition))

    def standardise(self, pathology: Tensor) -> Tensor:
        """U of z^n ``[B, 1, h, w]``."""
        return (pathology.float() - self.mean) / self.std

    def restore(self, latents: Tensor) -> Tensor:
        """z^n of u ``[B, 1, h, w]``."""
        return latents * self.std + self.mean
