"""How counterfactuals are scored: what every metric of them shares."""

from __future__ import annotations

from dataclasses import dataclass

from counterray.evaluation.auroc import MINIMUM_POSITIVES


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How counterfactuals are scored.

    Attributes:
        cycles: Numbers of repetitions for composition and reversibility.
        law_images: Number of images, the first ones, for composition and reversibility: k cycles of both
            take 3 k edits an image, far more than all else.
        minimum_positives: Images that a finding needs: positives and negatives to count in macro averages,
            generated and real ones that show it for its diversity.
        batch_size: Images at a time.
        seed: Of the bootstrap.
    """

    cycles: tuple[int, ...] = (1, 10)
    law_images: int = 64
    minimum_positives: int = MINIMUM_POSITIVES
    batch_size: int = 64
    seed: int = 0


DEFAULTS = Settings()
"""What holds where nothing else is asked for."""
