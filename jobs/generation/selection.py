"""Which images a request makes, in which chunks; and the studies of a chunk, read from their shards.

Everything here is a pure function of the request and the dataset, so that a job that was killed finds the
same chunks again. Tables hold identifiers and places only, never pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from counterray.data.batching import LoaderConfig, collate, column_names, decode, read_row_groups
from counterray.data.dataset import ROW_GROUP_ROWS, SPLITS, Dataset
from counterray.data.study import Batch
from jobs.generation.request import SHUFFLED, GenerateConfig, GenerationError

STUDY_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
"""A study and its place: shard, row group in it, and row in that."""


@dataclass(frozen=True)
class Chunk:
    """Images that are made and published together.

    Attributes:
        name: Its number, five digits or more.
        items: A row for each image: the columns of `STUDY_SCHEMA` for the study that is edited, ``number``
            (of the image in the request, from 0) and ``sample`` (of the study, from 0).
        donors: `STUDY_SCHEMA` of each image's donor, or ``None``.
    """

    name: str
    items: pa.Table
    donors: pa.Table | None = None


def list_studies(
    dataset: Dataset, split: str, *, limit: int | None = None, columns: Sequence[str] = ()
) -> pa.Table:
    """The studies of a split in stored order; reads two columns of the shards, and those asked for.

    Args:
        dataset: The dataset.
        split: The split.
        limit: Studies at most.
        columns: Further columns, which follow those of `STUDY_SCHEMA`.

    Raises:
        StorageError: If the split has none.
    """
    dataset.require_split(split)
    parts, count = [], 0
    for shard in dataset.manifest.shards[split]:
        for group in range(-(-shard.rows // ROW_GROUP_ROWS)):
            found = read_row_groups(dataset, shard.file, [group], ["image_id", "patient_id", *columns])
            rows = len(found)
            places = [
                pa.repeat(shard.file, rows),
                pa.repeat(pa.scalar(group, pa.int32()), rows),
                pa.array(range(rows), pa.int32()),
            ]
            names = [found[name].combine_chunks() for name in ("image_id", "patient_id")]
            part = pa.table([*names, *places], schema=STUDY_SCHEMA)
            for name in columns:
                part = part.append_column(name, found[name])
            parts.append(part)
            count += rows
            if limit is not None and count >= limit:
                return pa.concat_tables(parts).slice(0, limit)
    return pa.concat_tables(parts)


def plan(dataset: Dataset, config: GenerateConfig) -> list[Chunk]:
    """All images of a request, cut into chunks of nearly equal size.

    A study's samples follow each other, so that a generator that remembers a study's abduction does it once.

    Raises:
        GenerationError: If an image that the request names is not there.
        StorageError: If the split has no study.
    """
    studies, samples = _chosen(dataset, config)
    repeated = np.repeat(np.arange(len(studies)), samples)
    order = np.concatenate([np.arange(count) for count in samples]) if len(samples) else repeated
    items = studies.take(pa.array(repeated))
    items = items.append_column("number", pa.array(range(len(items)), pa.int64()))
    items = items.append_column("sample", pa.array(order, pa.int32()))
    donors = _donors(dataset, studies, config)
    if donors is not None:
        donors = donors.take(pa.array(repeated))
    count = -(-len(items) // config.chunk_images)
    edges = [len(items) * index // count for index in range(count + 1)]
    return [
        Chunk(
            f"{index:05d}",
            items.slice(start, stop - start),
            None if donors is None else donors.slice(start, stop - start),
        )
        for index, (start, stop) in enumerate(pairwise(edges))
    ]


def read_rows(dataset: Dataset, places: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Rows of the shards, one for each row of ``places`` (`STUDY_SCHEMA`) and in its order."""
    distinct = places.select(["file", "group"]).group_by(["file", "group"]).aggregate([]).to_pylist()
    position: dict[tuple[str, int], int] = {}
    parts, start = [], 0
    for place in distinct:
        part = read_row_groups(dataset, place["file"], [place["group"]], list(columns))
        position[place["file"], place["group"]] = start
        parts.append(part)
        start += len(part)
    wanted = [
        position[file, group] + row
        for file, group, row in zip(
            places["file"].to_pylist(), places["group"].to_pylist(), places["row"].to_pylist(), strict=True
        )
    ]
    return pa.concat_tables(parts).take(pa.array(wanted))


def read_batch(dataset: Dataset, places: pa.Table) -> Batch:
    """The studies at ``places`` as a batch, in their order; uncertain labels count as unknown."""
    return as_batch(dataset, read_rows(dataset, places, column_names((), reports=True)))


def as_batch(dataset: Dataset, table: pa.Table) -> Batch:
    """Rows of the dataset's shards, with at least the columns that loaders need, as a batch."""
    info = dataset.info()
    return collate(decode(table, info, LoaderConfig(), masks=(), reports=True), info)


def is_repeated(dataset: Dataset, config: GenerateConfig) -> bool:
    """Whether some study has several samples."""
    return config.samples > 1 or config.drawn > dataset.rows(config.split)


def _chosen(dataset: Dataset, config: GenerateConfig) -> tuple[pa.Table, list[int]]:
    """The studies that are edited, in stored order, and the number of samples of each."""
    if config.drawn:
        studies = list_studies(dataset, config.split)
        # Every anatomy is used once before one is used again.
        order = np.random.default_rng(config.seed).permutation(len(studies))
        times, rest = divmod(config.drawn, len(studies))
        samples = np.full(len(studies), times)
        samples[order[:rest]] += 1
        kept = np.flatnonzero(samples)
        return studies.take(pa.array(kept)), [int(count) * config.samples for count in samples[kept]]
    studies = list_studies(dataset, config.split, limit=config.studies)
    if config.image_ids:
        studies = studies.filter(pc.is_in(studies["image_id"], pa.array(config.image_ids, pa.string())))
        missing = len(set(config.image_ids)) - len(studies)
        if missing:
            raise GenerationError(
                f"{missing} of the {len(set(config.image_ids))} images of --image-id are not in split "
                f"{config.split!r} of {dataset.location.uri}. Choose others, or another --split."
            )
    return studies, [config.samples] * len(studies)


def _donors(dataset: Dataset, studies: pa.Table, config: GenerateConfig) -> pa.Table | None:
    """The donor of each study, or ``None`` where the request has none."""
    if not config.donor:
        return None
    if config.donor == SHUFFLED:
        return studies.take(pa.array(rotation(studies["patient_id"].to_pylist(), config.seed)))
    for split in SPLITS:
        if dataset.rows(split):
            listed = list_studies(dataset, split)
            found = listed.filter(pc.equal(listed["image_id"], config.donor))
            if len(found):
                return found.take(pa.array(np.zeros(len(studies), np.int64)))
    raise GenerationError(
        f"The donor of --from is no image of {dataset.location.uri}. Give the image_id of one, or "
        f"{SHUFFLED!r}."
    )


def rotation(patients: Sequence[str], seed: int) -> list[int]:
    """For each study the place of its donor: another patient's, a fixed random distance further on.

    Unlike a permutation, it makes the donors of a chunk neighbours, which are read together. A donor of the
    same patient is passed over for the next one.

    Raises:
        GenerationError: If all studies are of one patient.
    """
    count = len(patients)
    if len(set(patients)) < 2:
        raise GenerationError(
            f"--from {SHUFFLED} needs studies of two patients; the request has {count} of "
            f"{len(set(patients))}. Choose more studies, or name a donor."
        )
    distance = int(np.random.default_rng(seed).integers(1, count))
    donors = []
    for place, patient in enumerate(patients):
        donor = (place + distance) % count
        while patients[donor] == patient:
            donor = (donor + 1) % count
        donors.append(donor)
    return donors
