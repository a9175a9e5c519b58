"""A dataset made from another, shard by shard: a Ray Data job that can be killed and run again.

What refines reports, precomputes latents or drops studies reads a shard as a table and returns a table. The
derived dataset has the same layout, so that all else reads it as any other.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from counterray.bundle import code_version
from counterray.config import ConfigError
from counterray.data.batching import read_row_groups
from counterray.data.dataset import ROW_GROUP_ROWS, SPLITS, Dataset, DatasetManifest, Shard
from counterray.storage import Location, StorageError, resolve

logger = logging.getLogger(__name__)

_REQUEST = "index/derived.json"


class Transform(Protocol):
    """What a worker does with a shard; made once a worker, so that it may load weights."""

    def __call__(self, studies: pa.Table, split: str) -> tuple[pa.Table, Mapping[str, Any]]:
        """The derived studies (the same rows, in order), and plain JSON that counts what was done."""
        ...


class MakeTransform(Protocol):
    """Makes a `Transform` in a worker; pickled to get there."""

    def __call__(self) -> Transform:
        """A transform that is ready to run."""
        ...


@dataclass(frozen=True)
class Derived:
    """The outcome.

    Attributes:
        manifest: Of the derived dataset, not yet written: see `finish`.
        counts: What each shard's transform counted, by split, in the order of the shards.
        out: The derived dataset's folder.
    """

    manifest: DatasetManifest
    counts: Mapping[str, Sequence[Mapping[str, Any]]]
    out: Location

    def finish(self, **changes: Any) -> DatasetManifest:
        """Writes the manifest, with ``changes``, which makes the folder a dataset."""
        manifest = self.manifest.model_copy(update=changes)
        (self.out / "manifest.json").write_json(manifest.model_dump(mode="json"))
        return manifest


def derive(
    dataset: Dataset,
    out: str,
    make: MakeTransform,
    *,
    kind: str,
    settings: Mapping[str, Any],
    cpus: float = 1,
    gpus: float = 0,
    workers: int = 1,
) -> Derived:
    """Derives a dataset. Running it again does only what is missing.

    Args:
        dataset: The source.
        out: The new dataset's folder or ``s3://`` URI, empty or of an earlier run of this.
        make: Makes the transform in each worker.
        kind: What is done, in one word such as ``refined``; part of the fingerprint and of errors.
        settings: All that decides the result, as plain JSON; part of the fingerprint.
        cpus: CPUs of a worker.
        gpus: GPUs of a worker.
        workers: Workers at most.

    Raises:
        StorageError: If ``out`` holds something else, or a shard cannot be read or written.
    """
    target = resolve(out)
    fingerprint = _claim(dataset, target, kind, settings)
    tasks = [
        {"split": split, "file": shard.file, "name": _name(shard, fingerprint)}
        for split in SPLITS
        for shard in dataset.manifest.shards.get(split, ())
    ]
    sizes = target.sizes()
    there = [task["name"] for task in tasks if _index(task["name"]) in sizes]
    done = {
        name: found
        for name, found in zip(there, _read_indexes(target, there), strict=True)
        if sizes.get(found[0].file) == found[0].bytes
    }
    missing = [task for task in tasks if task["name"] not in done]
    logger.info("%s: %d of %d shards are there already", kind, len(done), len(tasks))
    for name in _run(dataset, target, missing, make, cpus=cpus, gpus=gpus, workers=workers):
        [done[name]] = _read_indexes(target, [name])
        logger.info("%s: %d of %d shards", kind, len(done), len(tasks))
    shards: dict[str, list[Shard]] = {split: [] for split in dataset.manifest.shards}
    counts: dict[str, list[Mapping[str, Any]]] = {split: [] for split in dataset.manifest.shards}
    for task in tasks:
        shard, counted = done[task["name"]]
        shards[task["split"]].append(shard)
        counts[task["split"]].append(counted)
    manifest = dataset.manifest.model_copy(
        update={
            "shards": {split: tuple(group) for split, group in shards.items()},
            "fingerprint": fingerprint,
            "code_version": code_version(),
        }
    )
    return Derived(manifest, counts, target)


def _claim(dataset: Dataset, target: Location, kind: str, settings: Mapping[str, Any]) -> str:
    """The derived fingerprint; refuses a folder that is not of this very derivation."""
    request = {"kind": kind, "from": dataset.manifest.fingerprint, "settings": dict(settings)}
    fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    place = target / _REQUEST
    if place.exists():
        if place.read_json() != request:
            raise StorageError(
                f"--out {target.uri} was made from another dataset or with other settings. Give another "
                "folder, or delete this one."
            )
    elif target.files():
        raise StorageError(f"--out {target.uri} holds files, but no {kind} dataset. Give an empty folder.")
    else:
        place.write_json(request)
    return fingerprint


def _name(shard: Shard, fingerprint: str) -> str:
    stem = shard.file.rsplit("/", 1)[-1].removeprefix("part-").split("-", 1)[0].removesuffix(".parquet")
    digest = hashlib.sha256(f"{fingerprint}{shard.file}{shard.sha256}".encode()).hexdigest()[:12]
    return f"{stem}-{digest}"


def _run(
    dataset: Dataset,
    target: Location,
    tasks: Sequence[Mapping[str, str]],
    make: MakeTransform,
    *,
    cpus: float,
    gpus: float,
    workers: int,
) -> Iterator[str]:
    """Names of the shards, as they are written."""
    if not tasks:
        return

    class Worker:
        def __init__(self) -> None:
            self.transform: Transform | None = None

        def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
            try:
                # With the first shard, as what fails in an actor's own making is told as its death.
                self.transform = self.transform or make()
                _write(dataset, target, task, self.transform)
            except (ConfigError, StorageError) as error:
                # Ray would keep of it only a traceback's text; the message is for the user.
                return {"name": task["name"], "error": str(error)}
            return {"name": task["name"], "error": ""}

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    results = ray.data.from_items([dict(task) for task in tasks], override_num_blocks=len(tasks)).map(
        Worker,
        num_cpus=cpus,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(tasks))),
    )
    for result in results.iter_rows():
        if result["error"]:
            raise StorageError(result["error"])
        yield result["name"]


def _write(dataset: Dataset, target: Location, task: Mapping[str, str], transform: Transform) -> None:
    """Derives one shard; its index, written last, says that it is done."""
    shard = next(s for s in dataset.manifest.shards[task["split"]] if s.file == task["file"])
    groups = list(range(-(-shard.rows // ROW_GROUP_ROWS)))
    table, counted = transform(read_row_groups(dataset, shard.file, groups, None), task["split"])
    if len(table) != shard.rows:
        raise AssertionError(f"A transform made {len(table)} of {shard.rows} rows; it must keep them.")
    buffer = io.BytesIO()
    few = [field.name for field in table.schema if pa.types.is_string(field.type) and "id" not in field.name]
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP_ROWS, use_dictionary=few)
    data = buffer.getvalue()
    file = f"{task['split']}/part-{task['name']}.parquet"
    (target / file).write_bytes(data)
    written = Shard(file=file, rows=len(table), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (target / _index(task["name"])).write_json({"shard": written.model_dump(), "counts": dict(counted)})


def _index(name: str) -> str:
    return f"index/{name}.json"


def _read_indexes(target: Location, names: Sequence[str]) -> list[tuple[Shard, Mapping[str, Any]]]:
    with ThreadPoolExecutor(max_workers=16) as pool:
        indexes = list(pool.map(lambda name: (target / _index(name)).read_json(), names))
    return [(Shard.model_validate(index["shard"]), index["counts"]) for index in indexes]
