"""How much one key, and all together, may ask for at a time."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from limits import parse_many
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from counterray.config import ConfigError
from serve.problems import ProblemError
from serve.settings import LimitSettings

logger = logging.getLogger(__name__)


class Limiter:
    """Admits requests of a gateway, or says why not.

    Args:
        settings: The limits.

    Raises:
        ConfigError: If the rate cannot be read, or the store cannot be used.
    """

    def __init__(self, settings: LimitSettings) -> None:
        self.settings = settings
        try:
            self._rates = parse_many(settings.rate)
            self._window = MovingWindowRateLimiter(storage_from_string(settings.store, wrap_exceptions=True))
        except Exception as error:  # The library's stores raise what their clients do.
            raise ConfigError(f"limits.rate = {settings.rate!r} or limits.store: {error}") from error
        self.inside: Counter[str] = Counter()
        """Requests of each owner that are being answered."""

    @asynccontextmanager
    async def admitted(self, owner: str) -> AsyncIterator[None]:
        """Holds a place for one request.

        Args:
            owner: Whose key it came with.

        Raises:
            ProblemError: ``rate-limited``, ``too-many-at-once`` or ``overloaded``, with ``Retry-After``;
                ``unavailable`` where rates cannot be counted.
        """
        wait = self.settings.retry_after_seconds
        if self.inside[owner] >= self.settings.concurrent:
            raise _refusal("too-many-at-once", f"A key may have {self.settings.concurrent} at a time.", wait)
        if self.inside.total() >= self.settings.waiting:
            raise _refusal("overloaded", f"{self.settings.waiting} requests are being answered.", wait)
        # Counted before anything is awaited: requests that come meanwhile find the place taken.
        self.inside[owner] += 1
        try:
            await self._require_rate(owner)
            yield
        finally:
            self.inside[owner] -= 1

    async def _require_rate(self, owner: str) -> None:
        try:
            for rate in self._rates:
                if not await self._window.hit(rate, owner):
                    reset = (await self._window.get_window_stats(rate, owner)).reset_time
                    raise _refusal("rate-limited", f"The limit is {rate}.", math.ceil(reset - time.time()))
        except StorageError as error:
            logger.error("limits.store cannot be used: %s", error.storage_error)
            raise ProblemError("unavailable", "The store of rates cannot be reached.") from error


def _refusal(kind: str, detail: str, seconds: int) -> ProblemError:
    return ProblemError(kind, detail, {"Retry-After": str(max(1, seconds))})
