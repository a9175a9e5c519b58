"""Report texts: a byte-pair vocabulary of the domain's own, and a small Transformer over its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from pydantic import Field, model_validator
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

from counterray.config import Config
from counterray.nn.blocks import parameter_dtype

_PAD, _START, _END = "[PAD]", "[START]", "[END]"


class TextConfig(Config):
    """Settings of the text tower."""

    vocabulary: int = Field(default=512, ge=300)
    """Largest number of tokens; 256 bytes and 3 marks are always among them."""
    context: int = Field(default=96, ge=4)
    """Tokens of a text that are read; what exceeds them is cut off."""
    width: int = Field(default=64, ge=8)
    """Channels of a token's state."""
    layers: int = Field(default=2, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""

    @model_validator(mode="after")
    def _heads_divide(self) -> TextConfig:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be divisible by heads ({self.heads})")
        return self


def train_tokenizer(texts: Iterable[str], config: TextConfig) -> Tokenizer:
    """Learns a lower-case byte-level BPE vocabulary; every text can be written in it.

    Reference: Sennrich et al., 2016, https://arxiv.org/abs/1508.07909, over bytes.

    Raises:
        ValueError: If no text has a character.
    """
    corpus = [text for text in texts if text.strip()]
    if not corpus:
        raise ValueError(
            "There is no report to learn a vocabulary from: the training split has no report texts. Use a "
            "source with reports, or leave the image-text encoder out."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[_PAD, _START, _END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    marks = [(mark, tokenizer.token_to_id(mark)) for mark in (_START, _END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=marks
    )
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(_PAD), pad_token=_PAD)
    tokenizer.enable_truncation(config.context)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token codes ``[B, T]`` (long), padded, and a bool mask ``[B, T]`` of those that are not padding."""
    encodings = tokenizer.encode_batch(list(texts))
    codes = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.long)
    return codes, torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool)


class TextTower(nn.Module):
    """Bidirectional pre-norm Transformer encoder with learned positions.

    Departs from CLIP's text tower, which is causal and reads its summary at the last token: short report
    texts are understood whole, and their states also condition a generator.
    Reference: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; Radford et al., 2021,
    https://arxiv.org/abs/2103.00020, section 2.4.
    """

    def __init__(self, config: TextConfig, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.01)

    def forward(self, codes: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[B, T, width]`` of the tokens and their mean ``[B, width]`` over those present.

        Args:
            codes: ``[B, T]`` token codes, T at most the context.
            present: ``[B, T]`` bool, false on padding; at least one true a row.
        """
        steps = torch.arange(codes.shape[1], device=codes.device)
        states = self.tokens(codes) + self.positions(steps)
        for block in self.blocks:
            states = block(states, present)
        states = self.norm(states)
        weight = present.unsqueeze(-1).to(parameter_dtype(self))
        return states, (states * weight).sum(1) / weight.sum(1)


class _Block(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape; padding is not attended to."""
        batch, length, width = states.shape
        mixed = self.mix(self.norm_attention(states)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=present[:, None, None, :]
        )
        states = states + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return torch.as_tensor(states + self.mlp(self.norm_mlp(states)))
