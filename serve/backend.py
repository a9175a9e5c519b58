"""What a gateway needs of the models: the contract between HTTP and computing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from serve.noise_cache import Counts
from serve.problems import ProblemError
from serve.work import Kept, Made, Preview, Work


@dataclass(frozen=True)
class Found:
    """Noise that was kept.

    Attributes:
        model: Its model's name.
        kept: The abduction.
        expires: When it is forgotten at the latest.
    """

    model: str
    kept: Kept
    expires: datetime


class Backend(Protocol):
    """Replicas that hold models, and the noise that is kept."""

    async def make(self, model: str, work: Work) -> Made | ProblemError:
        """Does a work; a client that goes away cancels this, and the work ends."""
        ...

    def watch(self, model: str, work: Work) -> AsyncIterator[Preview | Made | ProblemError]:
        """Does a work and tells of its images on their way; the last item is what came of it."""
        ...

    async def keep(self, kept: Kept, *, owner: str, model: str) -> tuple[str | None, datetime | None]:
        """Keeps an abduction; see `NoiseCache.put`."""
        ...

    async def find(self, name: str, *, owner: str) -> Found | None:
        """What is kept under a name for an owner."""
        ...

    async def loaded(self) -> set[str]:
        """Models that some replica holds."""
        ...

    async def counts(self) -> Counts:
        """The kept noise in numbers."""
        ...

    async def ready(self) -> bool:
        """Whether a request would be answered."""
        ...
