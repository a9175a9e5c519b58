"""Prompts to states: the text encoder that guides `pathology_ldm`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import nn

from counterray.models.predictors.image_text import ImageTextEncoder
from counterray.models.predictors.text import tokenize
from counterray.nn.text import TextStates


class TowerTextEncoder(nn.Module):
    """Implements `TextEncoder` with the text tower of an image-text encoder trained on the domain.

    Args:
        judge: A trained image-text encoder; its tower is shared, not copied.
        context: Tokens to which every text is padded or cut.

    Raises:
        ValueError: If ``context`` is more than the tower's own.
    """

    def __init__(self, judge: ImageTextEncoder, *, context: int) -> None:
        super().__init__()
        most, self.width = judge.text.positions.weight.shape
        if context > most:
            raise ValueError(
                f"text.context = {context}, but the text tower reads {most} tokens at most. Lower it, or "
                "train the image-text encoder with a larger text.context."
            )
        self.context = context
        self.tokenizer = Tokenizer.from_str(judge.tokenizer.to_str())
        padding = self.tokenizer.padding or {}
        self.tokenizer.enable_padding(
            length=context, pad_id=padding["pad_id"], pad_token=padding["pad_token"]
        )
        self.tokenizer.enable_truncation(context)
        self.tower = judge.text

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextStates:
        """States ``[B, context, width]`` of ``texts`` in float32, on the tower's device.

        Equal texts are computed once.
        """
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        rows = torch.tensor([places[text] for text in texts])
        device = self.tower.tokens.weight.device
        codes, present = (part.to(device) for part in tokenize(self.tokenizer, list(places)))
        states, _ = self.tower(codes, present)
        return TextStates(states.float()[rows], present[rows])
