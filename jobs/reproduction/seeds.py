"""Seeds of an experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def _usable(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"{list(seeds)} must be one or more different numbers from 0")
    return seeds


Seeds = Annotated[tuple[int, ...], AfterValidator(_usable)]
"""One or more different numbers from 0; each repeats the experiment."""
