"""What all replicas share: abducted noise, and which replica holds which model.

One Ray actor keeps both. A request for noise may then reach any replica and any gateway; the noise outlives
the replica that abducted it, a rolling update and a restart of Serve; and its bounds hold for the whole
server. It costs one call more a request than a replica's own memory would, which no balancer finds again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from datetime import datetime
from typing import Any

import ray

from serve.noise_cache import Counts, Entry, NoiseCache
from serve.settings import NoiseSettings
from serve.work import Kept

NAME = "counterray-serve-shared"
NAMESPACE = "counterray"

FRESH_SECONDS = 30.0
"""How long a replica's word on its models counts; it gives it with every health check, each 10 s."""

_SWEEP_SECONDS = 10.0


class Shared:
    """The actor.

    Args:
        settings: Bounds of the noise that is kept.
    """

    def __init__(self, settings: NoiseSettings) -> None:
        self.cache: NoiseCache[Kept] = NoiseCache(settings)
        self.held: dict[str, tuple[float, frozenset[str]]] = {}
        self._sweeping: asyncio.Task[None] | None = None

    async def configure(self, settings: NoiseSettings) -> None:
        """Takes over the bounds of a server that was started anew."""
        self.cache.settings = settings

    async def put(self, kept: Kept, owner: str, model: str) -> tuple[str | None, datetime | None]:
        """See `NoiseCache.put`."""
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep())
        return self.cache.put(kept, owner=owner, model=model, nbytes=kept.nbytes)

    async def get(self, name: str, owner: str) -> Entry[Kept] | None:
        """See `NoiseCache.get`."""
        return self.cache.get(name, owner=owner)

    async def holds(self, replica: str, models: Collection[str]) -> None:
        """Notes which models a replica holds now."""
        self.held[replica] = (time.monotonic() + FRESH_SECONDS, frozenset(models))

    async def loaded(self) -> set[str]:
        """Models that some replica holds, by the word of the last half minute."""
        now = time.monotonic()
        self.held = {name: entry for name, entry in self.held.items() if entry[0] > now}
        return {model for _, models in self.held.values() for model in models}

    async def counts(self) -> Counts:
        """The cache in numbers."""
        return self.cache.counts()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.cache.sweep()


def shared_actor(settings: NoiseSettings) -> Any:
    """The cluster's one actor of `Shared`, started if there is none.

    It is detached, so it outlives Serve, and restarts empty where its node dies.
    """
    actor = ray.remote(Shared).options(
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=1,
        max_concurrency=1000,
    )
    handle = actor.remote(settings)
    handle.configure.remote(settings)
    return handle
