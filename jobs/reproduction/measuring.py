"""Measurements on Ray, each kept in a file: what is measured is not measured again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import ray

from counterray.storage import resolve
from jobs.pipeline import result_of

logger = logging.getLogger(__name__)


class Subject(Protocol):
    """What is measured: one arm or one world, of one seed."""

    @property
    def seed(self) -> int:
        """The seed."""

    @property
    def folder(self) -> str:
        """Where its files lie, below the experiment's folder."""

    def request(self, kind: Any) -> dict[str, Any]:
        """What decides a measurement, as plain JSON: measured already is only what was measured so."""


SubjectType = TypeVar("SubjectType", bound=Subject)


def measure_all(
    kind: str,
    measurement: Callable[[SubjectType], dict[str, Any]],
    subjects: Sequence[SubjectType],
    place: str,
    *,
    parallel: int,
) -> list[dict[str, Any]]:
    """The measurement of every subject, in their order, ``parallel`` at a time on Ray.

    Args:
        kind: What is measured; the name of the file that it leaves.
        measurement: Measures one subject; what it returns becomes JSON.
        subjects: What is measured.
        place: The experiment's folder or ``s3://`` URI.
        parallel: Measurements at a time.
    """
    results: dict[int, dict[str, Any]] = {}
    waiting, running = list(enumerate(subjects)), dict[Any, int]()
    while waiting or running:
        while waiting and len(running) < parallel:
            index, subject = waiting.pop(0)
            file = f"{place}/{subject.folder}/{kind}.json"
            running[_measured.remote(measurement, subject, file, kind)] = index
        (finished, *_), _ = ray.wait(list(running), num_returns=1)
        index = running.pop(finished)
        results[index] = result_of(finished)
        logger.info("%s: %d of %d", kind, len(results), len(subjects))
    return [results[index] for index in range(len(subjects))]


@ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
def _measured(
    measurement: Callable[[Any], dict[str, Any]], subject: Subject, file: str, kind: str
) -> dict[str, Any]:
    place, request = resolve(file), subject.request(kind)
    if place.exists():
        before: dict[str, Any] = place.read_json()
        if before["request"] == request:
            return before
    result: dict[str, Any] = plain({"request": request, "seed": subject.seed, **measurement(subject)})
    place.write_json(result)
    return result


def plain(value: Any) -> Any:
    """The same with ``None`` for numbers that are not finite, for which JSON has no word."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
