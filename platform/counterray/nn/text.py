"""The contract of text encoders: what a generator that is guided by words asks of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextStates:
    """Texts as a generator reads them. B texts, T tokens, D = width of a state.

    Attributes:
        states: ``[B, T, D]`` state of each token.
        present: ``[B, T]`` bool, false on padding; at least one true a row.
    """

    states: Tensor
    present: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: Tensor | slice) -> TextStates:
        return TextStates(self.states[index], self.present[index])

    def to(self, device: torch.device | str) -> TextStates:
        """The same states on ``device``."""
        return TextStates(self.states.to(device), self.present.to(device))

    def where(self, keep: Tensor, other: TextStates) -> TextStates:
        """Row i of this where ``keep[i]`` (bool ``[B]``), elsewhere of ``other`` (B rows or one)."""
        return TextStates(
            torch.where(keep[:, None, None], self.states, other.states.to(self.states)),
            torch.where(keep[:, None], self.present, other.present.to(self.present.device)),
        )


class TextEncoder(Protocol):
    """Texts to states: a frozen `torch.nn.Module` in practice.

    Attributes:
        width: D, channels of a state.
        context: T, tokens of a text that are read; every text is padded to it, so that a text's states do
            not depend on the texts beside it.
    """

    width: int
    context: int

    def encode(self, texts: Sequence[str]) -> TextStates:
        """States of ``texts``; the empty text is valid: it is the null prompt of guidance."""
        ...
