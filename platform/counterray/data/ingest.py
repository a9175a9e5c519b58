"""From a source to a dataset on storage: a Ray Data job that can be killed and run again."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from pydantic import Field, ValidationInfo, field_validator

import counterray
from counterray.config import Config, flatten
from counterray.data import chunks, summary
from counterray.data.chunks import INDEX_SCHEMA, Chunk, Index
from counterray.data.dataset import FORMAT, ROW_GROUP_ROWS, SPLITS, DatasetManifest, Shard
from counterray.data.pixels import Fit
from counterray.data.sources import AnySource, Listing, SourceError
from counterray.data.sources.base import UNASSIGNED
from counterray.data.splits import SplitConfig, assign_splits
from counterray.data.study import SCHEMA_VERSION
from counterray.storage import Location, StorageError, resolve

logger = logging.getLogger(__name__)

_CONFIG_FILE = "index/config.json"

# Settings that change no study: they may differ between two runs into the same folder.
_HARMLESS = ("max_quarantined_fraction",)


class IngestError(RuntimeError):
    """An ingest cannot go on; the message names the setting, its value and the remedy."""


class IngestConfig(Config):
    """What to ingest, and how."""

    source: AnySource
    """The source's name, or a mapping with ``name`` and its settings."""
    image_size: int = Field(default=64, ge=32, le=2048)
    """Edge of the square images [px]; the phantom draws up to 512."""
    fit: Fit = "letterbox"
    """``letterbox`` pads the shorter side with black, ``crop`` cuts the longer one."""
    views: tuple[str, ...] = ()
    """Only these views, such as ``[PA, AP]``; empty for all. An image without a stated view is kept."""
    splits: SplitConfig = SplitConfig()
    """How patients are divided."""
    shard_rows: int = Field(default=512, ge=1)
    """Images of a chunk: the unit of parallel work and of resuming, and the rows of a shard at most."""
    max_quarantined_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the images that may be set aside; more is an error."""

    @field_validator("source", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("image_size")
    @classmethod
    def _within_source(cls, value: int, info: ValidationInfo) -> int:
        source = info.data.get("source")
        if source is not None and not source.image_sizes[0] <= value <= source.image_sizes[1]:
            lowest, highest = source.image_sizes
            raise ValueError(f"the source {source.name} gives images of {lowest} to {highest} px")
        return value


def ingest(config: IngestConfig, root: str | None, out: str) -> DatasetManifest:
    """Ingests a source. Running it again does only what is missing.

    Two ingests with the same settings into the same folder at once write the same files, each whole, and so
    do each other no harm.

    Args:
        config: The source and how to read it.
        root: The source's top folder, a local path or ``s3://bucket/prefix``; the phantom needs none.
        out: The dataset's folder, a local path or ``s3://bucket/prefix``.

    Returns:
        The manifest, which is also in ``out``.

    Raises:
        SourceError: If ``root`` does not have the source's layout.
        IngestError: If ``out`` holds something else, or too many images were set aside.
    """
    target = resolve(out)
    origin = resolve(root if root is not None else ".")
    if root is None and config.source.name != "phantom":
        raise SourceError(f"The source {config.source.name} needs --root: the folder that holds its files.")
    _check_folder(target, config)
    listing = config.source.listing(origin)
    records, notes = _prepared(listing, config)
    if not (target / _CONFIG_FILE).exists():
        (target / _CONFIG_FILE).write_json(config.model_dump(mode="json"))
    planned = _plan(records, config)
    indexes = _write_missing(planned, config, origin, target)
    indexes = _without_duplicates(planned, indexes, config, origin, target)
    rows = pa.concat_tables([INDEX_SCHEMA.empty_table(), *(index.rows for index in indexes.values())])
    quarantine = _quarantine(rows, listing)
    _write_parquet(target / "quarantine.parquet", quarantine)
    _check_limit(len(quarantine), len(rows) + len(listing.rejected), config, target)
    kept = rows.filter(pc.is_null(rows["reason"]))
    if listing.reports is not None:
        _write_reports(target, listing.reports, config)
    manifest = _manifest(kept, quarantine, indexes, config, listing, notes)
    (target / "manifest.json").write_json(manifest.model_dump(mode="json"))
    _remove_stale(target, planned, manifest)
    logger.info(
        "ingested %d studies (%s), set aside %d, fingerprint %s",
        len(kept),
        ", ".join(f"{split} {manifest.counts[split]['studies']}" for split in SPLITS),
        len(quarantine),
        manifest.fingerprint[:12],
    )
    return manifest


def _check_folder(target: Location, config: IngestConfig) -> None:
    """Says why the folder cannot be this configuration's own, where it cannot."""
    if target.is_file():
        raise IngestError(f"--out {target.uri} is a file; give an empty or a new folder.")
    place = target / _CONFIG_FILE
    wanted = config.model_dump(mode="json")
    if not place.exists():
        if target.files():
            raise IngestError(
                f"{target.uri} holds files, but no ingest of ours. Give --out an empty or a new folder."
            )
        return
    known = place.read_json()
    old, new = flatten(known), flatten(wanted)
    changed = [key for key in sorted({*old, *new} - set(_HARMLESS)) if old.get(key) != new.get(key)]
    if changed:
        differences = "; ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in changed)
        raise IngestError(
            f"{target.uri} was ingested with other settings: {differences}. Give --out another folder, or "
            "delete this one."
        )


def _prepared(listing: Listing, config: IngestConfig) -> tuple[pa.Table, dict[str, int]]:
    """The records to be read, sorted, each with its split; and the notes."""
    records = listing.records
    notes = dict(listing.notes)
    if config.views:
        keep = pc.or_kleene(pc.is_null(records["view"]), pc.is_in(records["view"], pa.array(config.views)))
        notes["other_view"] = len(records) - pc.sum(keep).as_py()
        records = records.filter(keep)
    if len(records) == 0 and not listing.reports:
        raise SourceError(f"The source {config.source.name} has no image to read; it noted {notes}.")
    official = records["split"].to_pylist()
    if config.splits.method == "official" and not any(official):
        expected = config.source.official_split or "no split of its own"
        raise SourceError(
            f"splits.method is 'official', but no image has a split: {config.source.name} keeps it in "
            f"{expected}. Set splits.method=hash."
        )
    patients = records["patient_id"].to_pylist()
    splits, moved = assign_splits(patients, official, config.splits)
    splits = [
        UNASSIGNED if patient == UNASSIGNED else split
        for patient, split in zip(patients, splits, strict=True)
    ]
    if config.splits.method == "official":
        notes["patients_moved"] = moved
        notes["hash_split"] = official.count(None)
    position = records.schema.get_field_index("split")
    records = records.set_column(position, "split", pa.array(splits, pa.string())).sort_by("image_id")
    repeated = len(records) - pc.count_distinct(records["image_id"]).as_py()
    if repeated:
        raise SourceError(f"{repeated} images of {config.source.name} share an image_id; it must be unique.")
    logger.info("%d images of %s listed; %s", len(records), config.source.name, notes)
    return records, notes


def _plan(records: pa.Table, config: IngestConfig) -> list[Chunk]:
    """Cuts the records into chunks, named by their content and all settings that change what is written."""
    settings = {
        "config": {key: value for key, value in config.model_dump().items() if key not in _HARMLESS},
        "format": FORMAT,
        "schema": SCHEMA_VERSION,
    }
    prefix = json.dumps(settings, sort_keys=True, default=_revealed).encode()
    planned = []
    for number, start in enumerate(range(0, len(records), config.shard_rows)):
        packed = chunks.pack(records.slice(start, config.shard_rows).combine_chunks())
        digest = hashlib.sha256(prefix + packed).hexdigest()[:12]
        planned.append(Chunk(f"{number:05d}-{digest}", packed))
    return planned


def _revealed(value: Any) -> str:
    return str(value.get_secret_value())


def _write_missing(
    planned: Sequence[Chunk], config: IngestConfig, root: Location, target: Location
) -> dict[str, Index]:
    """Writes the chunks that are not there yet, and returns the indexes of all, in order."""
    sizes = target.sizes()
    found = _read_indexes(target, [chunk for chunk in planned if chunks.index_file(chunk.name) in sizes])
    done = {
        name: index
        for name, index in found.items()
        if all(sizes.get(shard.file) == shard.bytes for shard in index.shards.values())
    }
    missing = [chunk for chunk in planned if chunk.name not in done]
    logger.info("%d of %d chunks are there already", len(done), len(planned))
    if missing:
        _run(missing, config, root, target)
        done |= _read_indexes(target, missing)
    return {chunk.name: done[chunk.name] for chunk in planned}


def _read_indexes(target: Location, planned: Sequence[Chunk]) -> dict[str, Index]:
    names = [chunk.name for chunk in planned]
    with ThreadPoolExecutor(max_workers=16) as pool:
        return dict(zip(names, pool.map(lambda name: chunks.read_index(target, name), names), strict=True))


def _run(missing: Sequence[Chunk], config: IngestConfig, root: Location, target: Location) -> None:
    def write(row: dict[str, Any]) -> dict[str, Any]:
        try:
            done = chunks.write_chunk(
                Chunk(row["name"], row["records"]),
                root,
                target,
                source=config.source,
                size=config.image_size,
                fit=config.fit,
                splits=config.splits,
            )
        except StorageError as error:
            # Ray would keep of it only a traceback's text; the message is for the user.
            return {"studies": 0, "rejected": 0, "error": str(error)}
        return {**done, "error": ""}

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"name": chunk.name, "records": chunk.records} for chunk in missing]
    # One block a chunk, so that a chunk is one task whatever its size in bytes.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(write)
    written = rejected = 0
    for finished, result in enumerate(dataset.iter_rows(), start=1):
        if result["error"]:
            raise StorageError(result["error"])
        written += result["studies"]
        rejected += result["rejected"]
        if finished == len(rows) or finished % max(1, len(rows) // 10) == 0:
            logger.info("%d of %d chunks: %d written, %d set aside", finished, len(rows), written, rejected)


def _without_duplicates(
    planned: Sequence[Chunk],
    indexes: dict[str, Index],
    config: IngestConfig,
    root: Location,
    target: Location,
) -> dict[str, Index]:
    """Sets aside every image whose pixels an earlier record already has.

    A chunk written by an earlier run may have set aside an image whose twin has gone since from the source:
    it is written again.
    """
    wanted = _duplicates(indexes)
    stale = [
        chunk for chunk in planned if set(_marked(indexes[chunk.name])) - set(wanted.get(chunk.name, ()))
    ]
    if stale:
        _run(stale, config, root, target)
        indexes |= _read_indexes(target, stale)
        wanted = _duplicates(indexes)
    for name, images in wanted.items():
        if set(images) != set(_marked(indexes[name])):
            indexes[name] = chunks.set_aside(target, name, indexes[name], images)
    return indexes


def _duplicates(indexes: Mapping[str, Index]) -> dict[str, list[str]]:
    """Chunk to its images whose pixels an earlier record has."""
    seen: set[bytes] = set()
    found: dict[str, list[str]] = {}
    for name, index in indexes.items():
        for image_id, pixels in zip(
            index.rows["image_id"].to_pylist(), index.rows["pixels"].to_pylist(), strict=True
        ):
            if pixels in seen:
                found.setdefault(name, []).append(image_id)
            elif pixels is not None:
                seen.add(pixels)
    return found


def _marked(index: Index) -> list[str]:
    marked = index.rows.filter(pc.equal(index.rows["reason"], "duplicate"))
    images: list[str] = marked["image_id"].to_pylist()
    return images


def _quarantine(rows: pa.Table, listing: Listing) -> pa.Table:
    columns = ["image_id", "reason", "detail"]
    read = rows.filter(pc.is_valid(rows["reason"])).select(columns)
    listed = pa.Table.from_pylist(
        [{name: getattr(item, name) for name in columns} for item in listing.rejected], read.schema
    )
    return pa.concat_tables([read, listed]).sort_by([("reason", "ascending"), ("image_id", "ascending")])


def _check_limit(quarantined: int, total: int, config: IngestConfig, target: Location) -> None:
    fraction = quarantined / max(1, total)
    if fraction > config.max_quarantined_fraction:
        raise IngestError(
            f"{quarantined} of {total} images ({fraction:.1%}) were set aside; max_quarantined_fraction is "
            f"{config.max_quarantined_fraction:.1%}. The reasons are in {target.uri}/quarantine.parquet. "
            "Mend the source or raise the limit, and run again: what is written stays."
        )


def _manifest(
    kept: pa.Table,
    quarantine: pa.Table,
    indexes: Mapping[str, Index],
    config: IngestConfig,
    listing: Listing,
    notes: dict[str, int],
) -> DatasetManifest:
    if len(kept) == 0 and not listing.reports:
        raise IngestError("No image is left: every one was set aside.")
    if leaking := summary.leaking_patients(kept):
        raise IngestError(f"{leaking} patients are in two splits; that is a fault of counterray.")
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for index in indexes.values():
        for split, shard in index.shards.items():
            shards[split].append(shard)
    return DatasetManifest(
        study_schema=SCHEMA_VERSION,
        source=config.source.name,
        config=config.model_dump(mode="json"),
        code_version=counterray.__version__,
        image_size=config.image_size,
        finding_names=summary.labelled_findings(kept),
        vocabulary=summary.vocabulary(kept, config.source.vocabulary),
        measurement_names=summary.distinct(kept, "measurement_names"),
        mask_names=summary.distinct(kept, "mask_names"),
        counts=summary.counts(kept),
        quarantined=dict(Counter(quarantine["reason"].to_pylist())),
        notes=notes,
        unknown_labels=dict(listing.unknown_labels),
        shards={split: tuple(group) for split, group in shards.items()},
        fingerprint=chunks.fingerprint(kept["digest"].to_pylist()),
    )


def _write_reports(target: Location, reports: pa.Table, config: IngestConfig) -> None:
    patients = reports["patient_id"].to_pylist()
    splits, _ = assign_splits(patients, [None] * len(patients), config.splits)
    _write_parquet(target / "reports.parquet", reports.append_column("split", pa.array(splits, pa.string())))


def _write_parquet(place: Location, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    place.write_bytes(buffer.getvalue())


def _remove_stale(target: Location, planned: Sequence[Chunk], manifest: DatasetManifest) -> None:
    """Deletes what an earlier state of the source left; the new manifest no longer names it."""
    current = {shard.file for group in manifest.shards.values() for shard in group}
    current |= {chunks.index_file(chunk.name) for chunk in planned}
    for file in target.files():
        folder, _, name = file.partition("/")
        is_ours = (folder in SPLITS and name.startswith("part-")) or folder == "index"
        if is_ours and name.endswith(".parquet") and file not in current:
            (target / file).delete()
