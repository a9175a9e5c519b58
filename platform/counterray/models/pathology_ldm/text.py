"""Prompts to states: the text encoders that `pathology_ldm` can be guided by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import nn

from counterray.bundle import Bundle
from counterray.config import Config
from counterray.models.predictors.image_text import TOKENIZER_FILE, ImageTextEncoderConfig
from counterray.models.predictors.text import TextConfig, TextTower, tokenize
from counterray.nn.text import TextStates


class TowerTextConfig(Config):
    """The text tower of an image-text encoder trained here, on the domain's own vocabulary."""

    kind: Literal["tower"] = "tower"
    """Discriminator."""
    context: int = Field(default=32, ge=4)
    """Tokens of a prompt that are read; at most the tower's own context."""


class TowerTextEncoder(nn.Module):
    """Implements `TextEncoder` with the tower of an `image_text_encoder`.

    Args:
        config: The tower's sizes.
        tokenizer: Its vocabulary, as JSON.
        context: Tokens to which every text is padded or cut.

    Raises:
        ValueError: If ``context`` is more than the tower's own.
    """

    def __init__(self, config: TextConfig, tokenizer: str, *, context: int) -> None:
        super().__init__()
        if context > config.context:
            raise ValueError(
                f"text.context = {context}, but the text tower reads {config.context} tokens at most. Lower "
                "it, or train the image-text encoder with a larger text.context."
            )
        self.config = config
        self.width, self.context = config.width, context
        self.tokenizer = Tokenizer.from_str(tokenizer)
        padding = self.tokenizer.padding or {}
        self.tokenizer.enable_padding(
            length=context, pad_id=padding["pad_id"], pad_token=padding["pad_token"]
        )
        self.tokenizer.enable_truncation(context)
        self.tower = TextTower(config, self.tokenizer.get_vocab_size())

    @classmethod
    def from_judge(cls, bundle: Bundle, *, context: int) -> TowerTextEncoder:
        """The text tower of an `image_text_encoder`'s bundle, frozen.

        Raises:
            BundleError: If the bundle is another stage's.
        """
        bundle.expect("image_text_encoder")
        config = ImageTextEncoderConfig.model_validate(bundle.metadata["config"])
        encoder = cls(config.text, bundle.file(TOKENIZER_FILE).decode(), context=context)
        prefix = "text."
        weights = {
            name.removeprefix(prefix): value
            for name, value in bundle.tensors().items()
            if name.startswith(prefix)
        }
        encoder.tower.load_state_dict(weights)
        return encoder.eval().requires_grad_(False)

    @classmethod
    def rebuild(cls, described: Mapping[str, Any], tokenizer: bytes) -> TowerTextEncoder:
        """The untrained encoder that `describe` describes."""
        config = TextConfig.model_validate(described["config"])
        return cls(config, tokenizer.decode(), context=described["context"])

    def describe(self) -> dict[str, Any]:
        """What `rebuild` needs beside the vocabulary, as plain JSON."""
        return {"kind": "tower", "config": self.config.model_dump(mode="json"), "context": self.context}

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextStates:
        """States ``[B, context, width]`` of ``texts`` in float32, on the tower's device."""
        device = self.tower.tokens.weight.device
        codes, present = (part.to(device) for part in tokenize(self.tokenizer, texts))
        states, _ = self.tower(codes, present)
        return TextStates(states.float(), present)
