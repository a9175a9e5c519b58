"""A dataset made from another, part by part: a Ray Data job that can be killed and run again.

What refines reports, precomputes latents or drops studies reads a shard as a table and returns a table. The
derived dataset has the same layout, so that all else reads it as any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterray.bundle import code_version
from counterray.data.dataset import ROW_GROUP_ROWS, Dataset, DatasetManifest, Shard
from counterray.data.derived_files import PARTS, file_parts, join, read_joined
from counterray.data.derived_parts import MakeTransform, Part, write_parts
from counterray.storage import Location, StorageError, resolve

_REQUEST = "index/derived.json"


@dataclass(frozen=True)
class Derived:
    """The outcome.

    Attributes:
        manifest: Of the derived dataset, not yet written: see `finish`.
        counts: What each part's transform counted: by split, in the order of the shards, and by the name of a
            file beside the splits.
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
    beside: Sequence[str] = (),
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
        beside: Parquet files in the dataset's folder, outside of its splits, that are derived too where they
            are there.
        cpus: CPUs of a worker.
        gpus: GPUs of a worker.
        workers: Workers at most.

    Raises:
        StorageError: If ``out`` holds something else, or a file cannot be read or written.
        BundleError, ConfigError: What ``make`` or a transform raised in a worker.
    """
    target = resolve(out)
    fingerprint = _claim(dataset, target, kind, settings)
    shards = {
        split: [_shard_part(shard, split, fingerprint) for shard in group]
        for split, group in dataset.manifest.shards.items()
    }
    files = {file: file_parts(dataset, file, fingerprint) for file in beside}
    joined = {file: read_joined(target, file, parts) for file, parts in files.items() if parts}
    unjoined = [file for file, counts in joined.items() if counts is None]
    parts = [*(part for group in shards.values() for part in group)]
    parts += [part for file in unjoined for part in files[file]]
    done = write_parts(dataset, target, parts, make, kind=kind, cpus=cpus, gpus=gpus, workers=workers)
    for file in unjoined:
        joined[file] = join(target, file, files[file], done)
    if joined:
        (target / PARTS).delete()
    manifest = dataset.manifest.model_copy(
        update={
            "shards": {split: tuple(done[p.name][0] for p in group) for split, group in shards.items()},
            "fingerprint": fingerprint,
            "code_version": code_version(),
        }
    )
    counts = {split: [done[part.name][1] for part in group] for split, group in shards.items()}
    return Derived(manifest, {**counts, **{file: found or () for file, found in joined.items()}}, target)


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


def _shard_part(shard: Shard, split: str, fingerprint: str) -> Part:
    stem = shard.file.rsplit("/", 1)[-1].removeprefix("part-").split("-", 1)[0].removesuffix(".parquet")
    digest = hashlib.sha256(f"{fingerprint}{shard.file}{shard.sha256}".encode()).hexdigest()[:12]
    name = f"{stem}-{digest}"
    groups = tuple(range(-(-shard.rows // ROW_GROUP_ROWS)))
    return Part(name, shard.file, groups, shard.rows, f"{split}/part-{name}.parquet", split)
