"""Accepted attempts and the real studies become one dataset, in the layout of an ingest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from counterray.bundle import code_version
from counterray.data import chunks, summary
from counterray.data.batching import read_row_groups
from counterray.data.chunks import INDEX_SCHEMA, Index
from counterray.data.dataset import ROW_GROUP_ROWS, SPLITS, Dataset, DatasetManifest, Shard
from counterray.data.study import ARROW_SCHEMA, SCHEMA_VERSION, Study
from counterray.storage import Location
from jobs.augmentation.attempts import STUDIES_FILE
from jobs.generation.chunks import read_parquet


@dataclass(frozen=True)
class Part:
    """A shard in the making.

    Attributes:
        name: Fixed by what will be in it.
        split: Its split.
        rows: Rows of the dataset's shard ``file``, or, where there is none, of a chunk of attempts.
        folder: The chunk's folder.
        image_ids: The studies that are taken of the chunk.
    """

    name: str
    split: str
    rows: int
    file: str = ""
    folder: str = ""
    image_ids: tuple[str, ...] = ()


def real_parts(dataset: Dataset, *, train: bool) -> list[Part]:
    """A part for each shard of the dataset; without those of the training split unless ``train``."""
    return [
        Part(f"{number:05d}-{shard.sha256[:12]}", split, shard.rows, file=shard.file)
        for split in SPLITS
        if train or split != "train"
        for number, shard in enumerate(dataset.manifest.shards.get(split, ()))
    ]


def synthetic_part(folder: str, image_ids: Sequence[str]) -> Part:
    """The part of a chunk of attempts of which ``image_ids`` were accepted."""
    digest = hashlib.sha256("\0".join(image_ids).encode()).hexdigest()[:12]
    stem = folder.removeprefix("attempts/").replace("/", "-")
    return Part(f"{stem}-{digest}", "train", len(image_ids), folder=folder, image_ids=tuple(image_ids))


@dataclass(frozen=True)
class PartWriter:
    """Writes parts of the dataset below ``target``; running it again writes the same."""

    dataset: Dataset
    target: Location

    def __call__(self, part: Part) -> str:
        """Writes a shard and then its index; returns the part's name."""
        if part.file:
            groups = list(range(-(-part.rows // ROW_GROUP_ROWS)))
            # Without tensors that were computed of the real studies: the synthetic ones have none.
            table = read_row_groups(self.dataset, part.file, groups, ARROW_SCHEMA.names).cast(ARROW_SCHEMA)
        else:
            stored = read_parquet(self.target / part.folder / STUDIES_FILE, ARROW_SCHEMA)
            wanted = pc.is_in(stored["image_id"], pa.array(part.image_ids, pa.string()))
            table = stored.filter(wanted)
        shard = chunks.write_shard(self.target, part.split, part.name, table)
        rows = [chunks.index_row(_study(row)) for row in table.to_pylist()]
        index = Index(pa.Table.from_pylist(rows, INDEX_SCHEMA), {part.split: shard})
        chunks.write_index(self.target, index_name(part), index)
        return part.name


def index_name(part: Part) -> str:
    """Name of a part's index; equal shards of two splits have two."""
    return f"{part.split}-{part.name}"


def written(target: Location, parts: Sequence[Part]) -> dict[Part, Index]:
    """The parts that are there whole, each with its index."""
    sizes = target.sizes()
    found = {}
    for part in parts:
        if chunks.index_file(index_name(part)) in sizes:
            index = chunks.read_index(target, index_name(part))
            if all(sizes.get(shard.file) == shard.bytes for shard in index.shards.values()):
                found[part] = index
    return found


def write_manifest(
    target: Location,
    dataset: Dataset,
    indexes: Sequence[Index],
    *,
    config: Mapping[str, Any],
    rejected: Sequence[str],
    notes: Mapping[str, int],
) -> DatasetManifest:
    """Writes ``manifest.json``, which makes the folder a dataset.

    Args:
        target: The folder.
        dataset: The one that was augmented.
        indexes: Of all parts, in their order.
        config: The request.
        rejected: Reason of each attempt that was rejected.
        notes: Further counts.
    """
    rows = pa.concat_tables([index.rows for index in indexes])
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for index in indexes:
        for split, shard in index.shards.items():
            shards[split].append(shard)
    manifest = DatasetManifest(
        study_schema=SCHEMA_VERSION,
        source=dataset.manifest.source,
        config={"augment": dict(config), "of": dataset.manifest.config},
        code_version=code_version(),
        image_size=dataset.manifest.image_size,
        finding_names=summary.labelled_findings(rows),
        vocabulary=summary.vocabulary(rows, dataset.manifest.vocabulary),
        measurement_names=summary.distinct(rows, "measurement_names"),
        mask_names=summary.distinct(rows, "mask_names"),
        counts=summary.counts(rows),
        quarantined=dict(sorted(Counter(rejected).items())),
        notes=dict(notes),
        shards={split: tuple(group) for split, group in shards.items()},
        fingerprint=chunks.fingerprint(rows["digest"].to_pylist()),
    )
    (target / "manifest.json").write_json(manifest.model_dump(mode="json"))
    return manifest


def remove_stale(target: Location, manifest: DatasetManifest, parts: Sequence[Part]) -> None:
    """Deletes shards and indexes of an earlier run that the manifest does not name."""
    current = {shard.file for group in manifest.shards.values() for shard in group}
    current |= {chunks.index_file(index_name(part)) for part in parts}
    for file in target.files():
        folder, _, name = file.partition("/")
        ours = (folder in SPLITS and name.startswith("part-")) or folder == "index"
        if ours and file not in current:
            (target / file).delete()


def _study(row: Mapping[str, Any]) -> Study:
    maps = {name: dict(row[name]) for name in ("measurements", "masks")}
    return Study(**{**row, **maps})
