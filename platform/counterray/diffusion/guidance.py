"""Classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from counterray.diffusion.denoiser import Denoiser
from counterray.nn.text import TextStates


@dataclass(frozen=True)
class Guided:
    """A denoiser that is led away from what it would say of nothing: f(∅) + w (f(c) - f(∅)).

    Both terms come from one call over 2B samples. With w = 1 (the condition alone) or w = 0 (the null
    condition alone) the other term is not computed, so that the result is the plain network's, bitwise.

    Attributes:
        denoiser: The network f.
        null: The null condition ∅, one row or one per sample; in practice the empty text.
        scale: w.

    Reference: Ho & Salimans, 2022, https://arxiv.org/abs/2207.12598, equation 6, whose w is ours less 1.
    """

    denoiser: Denoiser
    null: TextStates
    scale: float

    def __call__(self, noisy: Tensor, timestep: Tensor, condition: TextStates | None) -> Tensor:
        """The guided output ``[B, C, h, w]``.

        Raises:
            ValueError: If there is no condition, or its texts are padded to another length than the null's.
        """
        if condition is None:
            raise ValueError("Guidance needs a condition; sample without one by guidance_scale: 1.")
        if self.scale == 1:
            return self.denoiser(noisy, timestep, condition)
        null = self._null(condition)
        if self.scale == 0:
            return self.denoiser(noisy, timestep, null)
        both = TextStates(
            torch.cat([null.states, condition.states]), torch.cat([null.present, condition.present])
        )
        timesteps = timestep.expand(len(noisy)).repeat(2)
        unconditional, conditional = self.denoiser(noisy.repeat(2, 1, 1, 1), timesteps, both).chunk(2)
        return unconditional + self.scale * (conditional - unconditional)

    def _null(self, condition: TextStates) -> TextStates:
        if self.null.states.shape[1:] != condition.states.shape[1:] or len(self.null) not in (
            1,
            len(condition),
        ):
            raise ValueError(
                f"The null condition's states {list(self.null.states.shape)} do not fit the condition's "
                f"{list(condition.states.shape)}; encode both with the same encoder, the null as one text."
            )
        return TextStates(
            self.null.states.to(condition.states).expand_as(condition.states),
            self.null.present.to(condition.present).expand_as(condition.present),
        )


def guided(
    denoiser: Denoiser, condition: TextStates | None, null: TextStates | None, scale: float
) -> Denoiser:
    """``denoiser`` under guidance, or as it is where the scale is 1.

    Raises:
        ValueError: If the scale is not 1 and a condition or the null condition is missing.
    """
    if scale == 1:
        return denoiser
    if condition is None or null is None:
        missing = "a condition" if condition is None else "the null condition (the empty text's states)"
        raise ValueError(f"guidance_scale = {scale} needs {missing}; give it or set guidance_scale: 1.")
    return Guided(denoiser, null, scale)
