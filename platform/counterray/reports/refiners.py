"""The one list of refiners, and how a configuration becomes one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from counterray.reports.llm import Endpoint, LlmConfig, LlmRefiner
from counterray.reports.refine import Refiner
from counterray.reports.rules import RulesConfig, RulesRefiner
from counterray.storage import Location

AnyRefiner = Annotated[RulesConfig | LlmConfig, Field(discriminator="name")]
"""The configuration of any refiner; ``name`` says which."""


def make_refiner(config: RulesConfig | LlmConfig, endpoint: Endpoint | None, cache: Location) -> Refiner:
    """The refiner of a configuration.

    Args:
        config: Which, and its settings.
        endpoint: Where the language model is; only ``llm`` needs it.
        cache: Folder of answers; only ``llm`` uses it.

    Raises:
        RefineError: If the refiner's package is not installed.
    """
    if isinstance(config, LlmConfig):
        assert endpoint is not None
        return LlmRefiner(config, endpoint, cache)
    return RulesRefiner()
