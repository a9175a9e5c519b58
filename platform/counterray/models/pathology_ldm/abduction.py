"""What is kept of an observed image: its channels, and what decoding them leaves out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Abducted:
    """What images are made of.

    Attributes:
        identity: Identity channels ``[B, n - 1, h, w]``.
        pathology: The pathology channel ``[B, 1, h, w]`` that they show.
        residual: What decoding both leaves out ``[B, 1, H, W]``; ``None`` where that is not kept.
    """

    identity: Tensor
    pathology: Tensor
    residual: Tensor | None = None

    def select(self, rows: Tensor) -> Abducted:
        """The same of some rows."""
        residual = None if self.residual is None else self.residual[rows]
        return Abducted(self.identity[rows], self.pathology[rows], residual)
