"""T, the Transformer through which the latent channels act on each other (equation 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class ChannelTransformer(nn.Module):
    """``f = z + out(blocks(in(patches of z)))``: attention among the patches of all channels.

    One token a channel would need a width of h·w (4096 at 64x64), so a token is a p x p patch of one
    channel, with a learned embedding of its channel (identity 1 … n - 1, pathology) and of its position.
    The output layer starts at zero, so that T starts as the identity.

    Args:
        channels: n.
        latent_size: h, the edge of a channel [positions].
        patch_size: p.
        layers: k; 0 is the identity, without parameters.
        width: D, of a token.
        heads: Attention heads.

    Raises:
        ValueError: If ``patch_size`` does not divide ``latent_size`` or ``heads`` not ``width``.

    Reference: Nie et al., equation 2 and figure 9 (k = 4 best); the tokenisation is ours.
    """

    def __init__(
        self, *, channels: int, latent_size: int, patch_size: int, layers: int, width: int, heads: int
    ) -> None:
        super().__init__()
        self.layers = layers
        if not layers:
            return
        if latent_size % patch_size:
            raise ValueError(
                f"network.patch_size = {patch_size} does not divide the latents' edge {latent_size}; "
                "leave it out for the default."
            )
        if width % heads:
            raise ValueError(
                f"network.transformer_heads = {heads} does not divide network.transformer_width = {width}."
            )
        self.channels, self.grid, self.patch_size = channels, latent_size // patch_size, patch_size
        self.embed = nn.Linear(patch_size**2, width)
        self.channel_embedding = nn.Parameter(torch.randn(channels, 1, width) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(1, self.grid**2, width) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, patch_size**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, latent: Tensor) -> Tensor:
        """``f = T(z)``, ``[B, n, h, w]`` to the same shape; ``latent`` itself where k = 0."""
        if not self.layers:
            return latent
        tokens = self.embed(self._patches(latent)) + self.channel_embedding + self.position_embedding
        tokens = tokens.flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return latent + self._image(self.out(self.norm(tokens)))

    def _patches(self, latent: Tensor) -> Tensor:
        """``[B, n, h, w]`` to ``[B, n, L, p * p]``."""
        edge, patch = self.grid, self.patch_size
        grid = latent.reshape(-1, self.channels, edge, patch, edge, patch)
        return grid.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def _image(self, patches: Tensor) -> Tensor:
        """``[B, n * L, p * p]`` to ``[B, n, h, w]``, the inverse of `_patches`."""
        edge, patch = self.grid, self.patch_size
        grid = patches.reshape(-1, self.channels, edge, edge, patch, patch)
        return grid.transpose(3, 4).flatten(4, 5).flatten(2, 3)


class TransformerBlock(nn.Module):
    """Attention, then a two-layer perceptron of four times the width; layer norm before each, residual.

    Plain linear layers rather than ``nn.MultiheadAttention``, whose forward reads the weights of its
    children directly and so misses the hooks with which ZeRO-3 gathers them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, tokens, D]`` to the same shape."""
        batch, count, width = tokens.shape
        projected = torch.as_tensor(self.query_key_value(self.attention_norm(tokens)))
        heads = projected.view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.attention_out(attended.transpose(1, 2).flatten(2))
        return tokens + torch.as_tensor(self.perceptron(tokens))
