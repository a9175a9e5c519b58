"""Prompts to states: the text encoders that can guide `pathology_ldm`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import nn

from counterray.config import Config, ConfigError
from counterray.models.predictors.image_text import ImageTextEncoder
from counterray.models.predictors.text import tokenize
from counterray.nn.text import TextEncoder, TextStates
from counterray.nn.text_backends import OpenClipTextEncoder, TransformersTextEncoder


class TowerText(Config):
    """The text tower of the image-text encoder that judges: offline, in the domain's own words."""

    kind: Literal["tower"] = "tower"
    """Discriminator."""
    context: int = Field(default=32, ge=4)
    """Tokens of a prompt that are read; at most what the tower was trained to read."""


class TransformersText(Config):
    """A text model of ``transformers`` from a local folder."""

    kind: Literal["transformers"]
    """Discriminator."""
    folder: str
    """Where ``save_pretrained`` wrote model and tokenizer."""
    context: int = Field(default=77, ge=4)
    """Tokens of a prompt that are read."""


class OpenClipText(Config):
    """The language model in an open_clip model such as BiomedCLIP, from local folders (extra ``hub``)."""

    kind: Literal["open_clip"]
    """Discriminator."""
    folder: str
    """Config, weights and tokenizer, as BiomedCLIP publishes them."""
    language_model: str
    """Folder with the ``config.json`` of the language model that the config names."""
    context: int = Field(default=77, ge=4)
    """Tokens of a prompt that are read."""


TextEncoderConfig = Annotated[TowerText | TransformersText | OpenClipText, Field(discriminator="kind")]


def open_text_encoder(
    config: TowerText | TransformersText | OpenClipText, judge: ImageTextEncoder
) -> TextEncoder:
    """The text encoder of a configuration, frozen.

    Args:
        config: Which one.
        judge: The image-text encoder whose tower ``tower`` is.

    Raises:
        ConfigError: If a folder or a package that the encoder needs is missing, or the context is more than
            it reads.
    """
    if isinstance(config, TowerText):
        return TowerTextEncoder(judge, context=config.context)
    if isinstance(config, TransformersText):
        return TransformersTextEncoder(config.folder, context=config.context)
    return OpenClipTextEncoder(config.folder, language_model=config.language_model, context=config.context)


def weights_checksum(encoder: TextEncoder) -> str:
    """SHA-256 over an encoder's weights by name, by which encoding, training and generating agree on it."""
    assert isinstance(encoder, nn.Module)
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
            raise ConfigError(
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
