"""The Serve deployment that holds models: it gathers requests and gives them to an `Engine`."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle

from counterray.models.generator import generation_device
from serve.backend import Found
from serve.engine import AbandonedError, Engine
from serve.jury import Jury
from serve.noise_cache import Counts
from serve.problems import ProblemError, problem_of
from serve.settings import Settings
from serve.shared import shared_actor
from serve.work import Kept, Made, Preview, Work

MODELS_PER_REPLICA = 3
"""Models that a replica holds; the least recently used makes room."""

_NEXT_PREVIEW_SECONDS = 0.02


@dataclass
class _Job:
    """A work in a replica.

    Attributes:
        model: Its model.
        work: The work.
        abandoned: Set once nobody waits for it.
        since: When it came [s].
    """

    model: str
    work: Work
    abandoned: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.perf_counter)


class GeneratorReplica:
    """Loads models when they are asked for, and computes one batch at a time in a thread of its own.

    The event loop stays free, so that health checks are answered and requests gather while it computes.

    Args:
        settings: The server's, as plain values.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = Settings.model_validate(settings)
        torch.set_num_threads(self.settings.batch.threads)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._idle = asyncio.Event()
        self._idle.set()
        self._jury: Jury | None = None
        # Serve holds the engines, and lets go of the least recently used.
        self._held: weakref.WeakValueDictionary[str, Engine] = weakref.WeakValueDictionary()
        self._shared = shared_actor(self.settings.noise)
        self._together.set_max_batch_size(self.settings.batch.size)
        self._together.set_batch_wait_timeout_s(self.settings.batch.wait_seconds)

    async def make(self, work: Work) -> Made | ProblemError:
        """Does a work of the model that the handle names, together with what others ask of it."""
        job = _Job(serve.get_multiplexed_model_id(), work)
        try:
            # Serve closes a batch before it waits for the one that is computed: whoever came meanwhile would
            # be a batch by himself. So they wait here, and go in together.
            await self._idle.wait()
            return await self._together(job)  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            job.abandoned.set()
            raise

    async def watch(self, work: Work) -> AsyncIterator[Preview | Made | ProblemError]:
        """Does a work by itself, and yields its images on their way."""
        job, seen = _Job(serve.get_multiplexed_model_id(), work), queue.SimpleQueue[Preview]()
        done = asyncio.ensure_future(self._done([job], seen.put))
        try:
            while not done.done() or not seen.empty():
                await asyncio.wait([done], timeout=_NEXT_PREVIEW_SECONDS)
                while not seen.empty():
                    yield seen.get()
            yield done.result()[0]
        finally:
            job.abandoned.set()

    async def check_health(self) -> None:
        """Called by Serve; tells which models are here."""
        replica = serve.get_replica_context().replica_id.unique_id
        self._shared.holds.remote(replica, tuple(self._held.keys()))

    # Both numbers are the settings', set at the start; Serve gathers requests of one model only.
    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _together(self, jobs: list[_Job]) -> list[Made | ProblemError]:
        self._idle.clear()
        try:
            return await self._done(jobs)
        finally:
            self._idle.set()

    async def _done(
        self, jobs: list[_Job], on_preview: Callable[[Preview], None] | None = None
    ) -> list[Made | ProblemError]:
        started, model = time.perf_counter(), jobs[0].model
        loop = asyncio.get_running_loop()
        try:
            engine = await self._engine(model)
        except Exception as error:  # Storage, a bundle, or memory: what it is, the problem says.
            return [problem_of(error, doing=f"load the model {model}")] * len(jobs)
        loaded = time.perf_counter()
        try:
            made = await loop.run_in_executor(
                self._thread,
                lambda: engine.do(
                    [job.work for job in jobs],
                    stopped=lambda: all(job.abandoned.is_set() for job in jobs),
                    on_preview=on_preview,
                ),
            )
        except AbandonedError:
            return [ProblemError("deadline", "Nobody waited for the answer any more.")] * len(jobs)
        return [
            one
            if isinstance(one, ProblemError)
            else replace(one, seconds={**one.seconds, "load": loaded - started, "wait": started - job.since})
            for one, job in zip(made, jobs, strict=True)
        ]

    @serve.multiplexed(max_num_models_per_replica=MODELS_PER_REPLICA)  # type: ignore[untyped-decorator]
    async def _engine(self, model: str) -> Engine:
        engine = await asyncio.get_running_loop().run_in_executor(self._thread, self._open, model)
        self._held[model] = engine
        return engine

    def _open(self, model: str) -> Engine:
        if self._jury is None:
            self._jury = Jury.open(self.settings.judges, generation_device())
        settings = self.settings.models[model]
        return Engine.open(model, settings, self._jury, rows=self.settings.batch.rows)


@dataclass(frozen=True)
class ServeBackend:
    """Implements `Backend` with Serve deployments, a pool of replicas each, and the shared actor.

    Attributes:
        settings: The server's.
        pools: Name of each pool to its handle.
        shared: The actor of `Shared`.
    """

    settings: Settings
    pools: dict[str, DeploymentHandle]
    shared: Any

    async def make(self, model: str, work: Work) -> Made | ProblemError:
        """See `Backend`."""
        response = self._handle(model).make.remote(work)
        try:
            return await response  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            return _lost(error)

    async def watch(self, model: str, work: Work) -> AsyncIterator[Preview | Made | ProblemError]:
        """See `Backend`."""
        items = self._handle(model).options(stream=True).watch.remote(work)
        try:
            async for item in items:
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            items.cancel()
            raise
        except Exception as error:
            yield _lost(error)

    async def keep(self, kept: Kept, *, owner: str, model: str) -> tuple[str | None, datetime | None]:
        """See `Backend`."""
        return await self.shared.put.remote(kept, owner, model)  # type: ignore[no-any-return]

    async def find(self, name: str, *, owner: str) -> Found | None:
        """See `Backend`."""
        entry = await self.shared.get.remote(name, owner)
        return None if entry is None else Found(entry.model, entry.kept, entry.expires)

    async def loaded(self) -> set[str]:
        """See `Backend`."""
        return await self.shared.loaded.remote()  # type: ignore[no-any-return]

    async def counts(self) -> Counts:
        """See `Backend`."""
        return await self.shared.counts.remote()  # type: ignore[no-any-return]

    async def ready(self) -> bool:
        """Whether the shared actor answers; a pool may stand at no replica and start with a request."""
        try:
            await asyncio.wait_for(self.shared.counts.remote(), timeout=5)
        except (TimeoutError, ray.exceptions.RayError):
            return False
        return True

    def _handle(self, model: str) -> DeploymentHandle:
        return self.pools[self.settings.models[model].pool].options(multiplexed_model_id=model)


_ENDED = (
    *(ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.TaskCancelledError),
    *(DeploymentUnavailableError, ReplicaUnavailableError, RequestCancelledError),
)


def _lost(error: Exception) -> ProblemError:
    """The problem of a call that found no replica, or whose replica ended."""
    if isinstance(error, BackPressureError):
        return ProblemError("overloaded", "Too many requests wait for this model.")
    if isinstance(error, _ENDED):
        return ProblemError("unavailable", "The replica that had this request ended; nothing was made.")
    return problem_of(error, doing="reach a replica")
