"""Parts of a dataset that Ray workers derive one by one: a part that is written is not done again."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from counterray.bundle import BundleError
from counterray.config import ConfigError
from counterray.data.batching import read_row_groups
from counterray.data.dataset import ROW_GROUP_ROWS, Dataset, Shard
from counterray.storage import Location, StorageError

logger = logging.getLogger(__name__)

_FOR_THE_USER = (BundleError, ConfigError, StorageError)
"""Errors whose message names what to change."""


class Transform(Protocol):
    """What a worker does with a part; made once a worker, so that it may load weights."""

    def __call__(self, studies: pa.Table, split: str) -> tuple[pa.Table, Mapping[str, Any]]:
        """The derived rows (the same ones, in order), and plain JSON that counts what was done."""
        ...


class MakeTransform(Protocol):
    """Makes a `Transform` in a worker; pickled to get there."""

    def __call__(self) -> Transform:
        """A transform that is ready to run."""
        ...


@dataclass(frozen=True)
class Part:
    """Row groups of a file, and the file that is made of them.

    Attributes:
        name: Ends in a checksum of all that decides what is made.
        source: File of the dataset that is read.
        groups: Its row groups.
        rows: Rows in them.
        file: File that is written.
        split: ``train``, ``validation`` or ``test``; empty for rows beside the splits.
    """

    name: str
    source: str
    groups: tuple[int, ...]
    rows: int
    file: str
    split: str = ""


Done = Mapping[str, tuple[Shard, Mapping[str, Any]]]
"""Name of a part to the file that was written of it and to what its transform counted."""


def write_parts(
    dataset: Dataset,
    target: Location,
    parts: Sequence[Part],
    make: MakeTransform,
    *,
    kind: str,
    cpus: float = 1,
    gpus: float = 0,
    workers: int = 1,
) -> Done:
    """Derives the parts that are not there yet; this process holds none of their rows.

    Args:
        dataset: The source.
        target: Folder of the new dataset.
        parts: All parts.
        make: Makes the transform in each worker.
        kind: What is done, in one word, for the log.
        cpus: CPUs of a worker.
        gpus: GPUs of a worker.
        workers: Workers at most.

    Raises:
        BundleError, ConfigError, StorageError: What ``make`` or a transform raised in a worker.
    """
    sizes = target.sizes()
    there = [part for part in parts if _index(part.name) in sizes]
    done = {
        part.name: found
        for part, found in zip(there, _read_indexes(target, there), strict=True)
        if sizes.get(found[0].file) == found[0].bytes
    }
    missing = [part for part in parts if part.name not in done]
    logger.info("%s: %d of %d parts are there already", kind, len(done), len(parts))
    written = _run(dataset, target, missing, make, cpus=cpus, gpus=gpus, workers=workers)
    for count, part in enumerate(written, start=1):
        [done[part.name]] = _read_indexes(target, [part])
        if count == len(missing) or count % max(1, len(missing) // 10) == 0:
            logger.info("%s: %d of %d parts", kind, len(done), len(parts))
    return done


def _run(
    dataset: Dataset,
    target: Location,
    parts: Sequence[Part],
    make: MakeTransform,
    *,
    cpus: float,
    gpus: float,
    workers: int,
) -> Iterator[Part]:
    """The parts, as they are written."""
    if not parts:
        return

    class Worker:
        def __init__(self) -> None:
            self.transform: Transform | None = None

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            try:
                # With the first part, as what fails in an actor's own making is told as its death.
                self.transform = self.transform or make()
                _write(dataset, target, parts[row["number"]], self.transform)
            except _FOR_THE_USER as error:
                # Ray would keep of it only a traceback's text; the message is for the user.
                return {"number": row["number"], "error": ray.cloudpickle.dumps(error)}
            return {"number": row["number"], "error": b""}

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"number": number} for number in range(len(parts))]
    # One block a part, so that a part is one task whatever its size in bytes.
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Worker,
        num_cpus=cpus,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(rows))),
    )
    for result in results.iter_rows():
        if result["error"]:
            raise ray.cloudpickle.loads(result["error"])
        yield parts[result["number"]]


def _write(dataset: Dataset, target: Location, part: Part, transform: Transform) -> None:
    """Derives one part; its index, written last, says that it is done."""
    table, counted = transform(read_row_groups(dataset, part.source, list(part.groups), None), part.split)
    if len(table) != part.rows:
        raise AssertionError(f"A transform made {len(table)} of {part.rows} rows; it must keep them.")
    buffer = io.BytesIO()
    few = [field.name for field in table.schema if pa.types.is_string(field.type) and "id" not in field.name]
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP_ROWS, use_dictionary=few)
    data = buffer.getvalue()
    (target / part.file).write_bytes(data)
    written = Shard(file=part.file, rows=len(table), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (target / _index(part.name)).write_json({"shard": written.model_dump(), "counts": dict(counted)})


def _index(name: str) -> str:
    return f"index/{name}.json"


def _read_indexes(target: Location, parts: Sequence[Part]) -> list[tuple[Shard, Mapping[str, Any]]]:
    with ThreadPoolExecutor(max_workers=16) as pool:
        indexes = list(pool.map(lambda part: (target / _index(part.name)).read_json(), parts))
    return [(Shard.model_validate(index["shard"]), index["counts"]) for index in indexes]
