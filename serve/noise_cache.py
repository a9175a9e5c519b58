"""What was abducted, kept for a while under a name that cannot be guessed."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from serve.settings import NoiseSettings

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Entry(Generic[Kept]):
    """One abduction.

    Attributes:
        kept: The abduction.
        owner: Whose request it came from; nobody else finds it.
        model: The model that abducted it.
        nbytes: Its memory [bytes].
        expires: When it is forgotten at the latest.
    """

    kept: Kept
    owner: str
    model: str
    nbytes: int
    expires: datetime


@dataclass(frozen=True)
class Counts:
    """The cache in numbers.

    Attributes:
        entries: Abductions that are kept.
        nbytes: Their memory [bytes].
        hits: Abductions that were asked for and there, so far.
        misses: Abductions that were asked for and not there.
    """

    entries: int
    nbytes: int
    hits: int
    misses: int


class NoiseCache(Generic[Kept]):
    """A bounded cache that forgets first what was used least recently, and everything in time.

    Args:
        settings: Its bounds.
        clock: Gives seconds that never go back.
    """

    def __init__(self, settings: NoiseSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self._clock = settings, clock
        self._entries: OrderedDict[str, Entry[Kept]] = OrderedDict()
        """By use, the least recent first."""
        self._ages: dict[str, float] = {}
        """Name to when it expires, the oldest first."""
        self.nbytes = 0
        """Memory in use [bytes]."""
        self.hits = 0
        """Entries that were asked for and there."""
        self.misses = 0
        """Entries that were asked for and not there."""

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, kept: Kept, *, owner: str, model: str, nbytes: int) -> tuple[str | None, datetime | None]:
        """Keeps an abduction.

        Returns:
            Its name and when it is forgotten at the latest; ``None`` twice for one that is larger than all
            the memory there is.
        """
        self.sweep()
        if nbytes > self.settings.most_bytes:
            return None, None
        while self.nbytes + nbytes > self.settings.most_bytes:
            self._forget(next(iter(self._entries)))
        name = secrets.token_hex(16)
        expires = datetime.fromtimestamp(time.time() + self.settings.expires_seconds, tz=UTC)
        self._entries[name] = Entry(kept, owner, model, nbytes, expires)
        self._ages[name] = self._clock() + self.settings.expires_seconds
        self.nbytes += nbytes
        return name, expires

    def get(self, name: str, *, owner: str) -> Entry[Kept] | None:
        """What is kept under a name for this owner; ``None`` if nothing is."""
        self.sweep()
        entry = self._entries.get(name)
        if entry is None or entry.owner != owner:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(name)
        return entry

    def counts(self) -> Counts:
        """The cache in numbers."""
        return Counts(len(self), self.nbytes, self.hits, self.misses)

    def sweep(self) -> None:
        """Forgets what has expired."""
        while self._ages and (name := next(iter(self._ages))) and self._ages[name] <= self._clock():
            self._forget(name)

    def _forget(self, name: str) -> None:
        del self._ages[name]
        self.nbytes -= self._entries.pop(name).nbytes
