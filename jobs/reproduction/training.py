"""A training that an experiment's arms share: a shipped YAML, a seed, and settings on top."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from counterray.config import Config
from jobs.pipeline_config import StageRun

SCORING_SEED = 1000
"""What the seed of a judge that scores is ahead of its experiment's, so that it is no loss's judge."""


class Training(Config):
    """A training that arms share or start from."""

    config: str
    """Training YAML, relative to the experiment's file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings on top of it, by dotted name."""

    def run(self, seed: int, **more: Any) -> StageRun:
        """The training with a seed, and with ``settings``, ``inputs`` or ``data`` of its own."""
        settings = {**self.settings, **more.pop("settings", {}), "seed": seed}
        return StageRun(config=self.config, settings=settings, **more)
