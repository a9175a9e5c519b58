"""What `mine_ldm` trains last: a denoiser of latents that attends to the levels of attributes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from counterray.diffusion.unet import DenoiserConfig, LatentDenoiser
from counterray.models.mine_ldm.attributes import AttributeSpace
from counterray.nn.text import TextStates


class AttributeDenoiser(nn.Module):
    """A `Denoiser` whose condition has one token for each attribute: the embedding of its level.

    An attribute that is not known, or is dropped in training, has a level of its own, so that each can be
    left out alone.

    Args:
        config: Size of the denoiser.
        space: The attributes.
        channels: C of a latent.
        size: Edge h = w of a latent.
        width: D, channels of a token.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, section 3.2 (cross-attention on the label);
        its code adds the label to the time embedding instead.
    """

    def __init__(
        self, config: DenoiserConfig, space: AttributeSpace, *, channels: int, size: int, width: int
    ) -> None:
        super().__init__()
        self.space = space
        self.denoiser = LatentDenoiser(config, channels=channels, size=size, text_width=width)
        self.embeddings = nn.ModuleDict(
            {name: nn.Embedding(len(levels) + 1, width) for name, levels in space.levels.items()}
        )

    def forward(self, noisy: Tensor, timestep: Tensor, condition: TextStates | None) -> Tensor:
        """Output ``[B, C, h, w]``, float32; see `Denoiser`."""
        return torch.as_tensor(self.denoiser(noisy, timestep, condition))

    def condition(self, codes: Tensor) -> TextStates:
        """Tokens ``[B, m, D]`` of codes ``[B, m]`` float, NaN where not known."""
        tokens = []
        for column, (name, levels) in zip(codes.unbind(dim=1), self.space.levels.items(), strict=True):
            level = column.nan_to_num(float(len(levels))).long()
            tokens.append(self.embeddings[name](level))
        states = torch.stack(tokens, dim=1)
        return TextStates(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))

    def null(self, device: torch.device) -> TextStates:
        """The condition that says nothing, one row."""
        return self.condition(torch.full((1, len(self.space.levels)), torch.nan, device=device))
