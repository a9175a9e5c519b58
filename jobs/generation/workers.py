"""Ray workers that open something large once, a generator, and then do one piece of work after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.util import ActorPool

from jobs.generation.request import GenerationError, WorkersConfig

logger = logging.getLogger(__name__)

Work = TypeVar("Work")
Result = TypeVar("Result")

RESTARTS = 3
"""Times that a worker which died is started again; the piece it was at is then done from its beginning."""


class _Worker:
    """Opens with its first piece of work: a restarted one opens again, and what fails there is told."""

    def __init__(self, make: bytes, threads: int) -> None:
        self.make, self.threads = make, threads
        self.work: Callable[[Any], Any] | None = None

    def do(self, piece: Any) -> Any:
        if self.work is None:
            import torch

            torch.set_num_threads(self.threads)
            self.work = ray.cloudpickle.loads(self.make)()
        return self.work(piece)


@contextmanager
def workers(
    make: Callable[[], Callable[[Work], Result]], config: WorkersConfig, *, at_most: int
) -> Iterator[Callable[[Sequence[Work]], Iterator[Result]]]:
    """Gives a function that does pieces of work on Ray and yields their results as they come, in any order.

    The workers start with the first piece and stay until the end.

    Args:
        make: Opens what a worker needs and returns what does a piece; both run in the worker. A piece may be
            done twice, where a worker dies, so doing it must be repeatable.
        config: Number and size of the workers.
        at_most: Pieces that there can be; more workers would stand idle.

    Raises:
        GenerationError: If a worker dies again and again, or the cluster has no room for one.
        Exception: What ``make`` or a piece raised.
    """
    actors: list[Any] = []

    def do(pieces: Sequence[Work]) -> Iterator[Result]:
        if not actors:
            actors.extend(_start(make, config, at_most))
        return _results(actors, pieces)

    try:
        yield do
    finally:
        for worker in actors:
            ray.kill(worker)


def _start(make: Callable[[], Any], config: WorkersConfig, at_most: int) -> list[Any]:
    options = {
        "num_cpus": config.cpus_per_worker,
        "num_gpus": config.gpus_per_worker,
        "max_restarts": RESTARTS,
        "max_task_retries": RESTARTS,
    }
    actor = ray.remote(**options)(_Worker)
    pickled = ray.cloudpickle.dumps(make)
    return [actor.remote(pickled, config.threads) for _ in range(max(1, min(_workers(config), at_most)))]


def _results(actors: Sequence[Any], pieces: Sequence[Any]) -> Iterator[Any]:
    logger.info("%d pieces of work on %d workers", len(pieces), len(actors))
    pool = ActorPool(list(actors))
    try:
        yield from pool.map_unordered(lambda worker, piece: worker.do.remote(piece), pieces)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise GenerationError(
            f"A worker died {RESTARTS + 1} times, most likely for want of memory. Lower batch_size or "
            "resources.workers, and run again: what is written stays."
        ) from error


def _workers(config: WorkersConfig) -> int:
    have = ray.cluster_resources()
    asked = {"cpus": ("CPU", config.cpus_per_worker), "gpus": ("GPU", config.gpus_per_worker)}
    rooms = {setting: int(have.get(kind, 0.0) // share) for setting, (kind, share) in asked.items() if share}
    scarce = min(rooms, key=lambda setting: rooms[setting])
    if rooms[scarce] < max(1, config.workers or 1):
        kind, share = asked[scarce]
        raise GenerationError(
            f"resources.workers = {config.workers or 1} of resources.{scarce}_per_worker = {share:g} {kind}s "
            f"do not fit: Ray has {have.get(kind, 0.0):g} {kind}s. Lower one of them."
        )
    return config.workers or rooms[scarce]
