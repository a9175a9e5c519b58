"""The one interface of networks that remove noise."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from counterray.nn.text import TextStates


class Denoiser(Protocol):
    """A network that predicts noise or velocity, see `ScheduleConfig.prediction`."""

    def __call__(self, noisy: Tensor, timestep: Tensor, condition: TextStates | None) -> Tensor:
        """Output ``[B, C, h, w]`` for latents ``[B, C, h, w]`` at timesteps ``[B]`` long."""
        ...
