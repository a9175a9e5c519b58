"""Ray Data: from Parquet shards on storage to a rank's endless, seeded, resumable stream of batches.

The unit of work is a *block*: a few row groups drawn from all over the split, read, decoded and shuffled
together by one Ray task. Which row groups make block g is a pure function of (seed, g), so a rank that
knows its `Position` continues exactly where it stopped, and no process ever holds the list of studies.
Ranks take blocks in turn: rank r of W reads blocks r, r + W, r + 2W, and so on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import ExecutionResources

from counterray.data.batching import (
    Columns,
    LoaderConfig,
    collate,
    column_names,
    decode,
    read_row_groups,
)
from counterray.data.dataset import ROW_GROUP_ROWS, Dataset, DatasetInfo
from counterray.data.study import Batch

BLOCK_BYTES = 64 * 2**20
"""Upper bound of a decoded block [bytes]; half of Ray Data's own target."""

SEGMENT_BLOCKS = 256
"""Blocks of one Ray Data execution; starting the next one costs a fraction of a second."""

BLOCKS_IN_FLIGHT = 6
"""Decoded blocks that a rank's stream may keep in the object store."""


@dataclass(frozen=True)
class Position:
    """Where a rank stands in its stream: its next block, counted from 0, and the next row in it."""

    block: int = 0
    row: int = 0


@dataclass(frozen=True)
class Plan:
    """Which row groups make which block, for one rank.

    Attributes:
        pieces: All row groups of the split as (shard file, row group).
        groups_per_block: Row groups in a block.
        seed: Of the order, or ``None`` for the stored order (validation, evaluation).
        rank: This rank.
        world_size: Number of ranks.
    """

    pieces: tuple[tuple[str, int], ...]
    groups_per_block: int
    seed: int | None
    rank: int = 0
    world_size: int = 1

    @property
    def blocks_per_epoch(self) -> int:
        """Blocks that hold every study once, over all ranks."""
        return -(-len(self.pieces) // self.groups_per_block)

    def block(self, index: int) -> tuple[int, int, list[tuple[str, int]]]:
        """Epoch, place in the epoch and row groups of this rank's block ``index``."""
        epoch, place = divmod(index * self.world_size + self.rank, self.blocks_per_epoch)
        order = _order(len(self.pieces), self.seed, epoch)
        chosen = order[place * self.groups_per_block : (place + 1) * self.groups_per_block]
        return epoch, place, [self.pieces[piece] for piece in chosen]


def make_plan(
    dataset: Dataset,
    split: str,
    config: LoaderConfig,
    *,
    seed: int | None,
    rank: int = 0,
    world_size: int = 1,
    masks: tuple[str, ...] = (),
) -> Plan:
    """Plans a split for a rank; blocks are smaller than configured where images are large.

    Raises:
        StorageError: If the split has no study.
    """
    dataset.require_split(split)
    row_bytes = dataset.manifest.image_size**2 * (1 + len(masks))
    studies = min(config.block_studies, max(ROW_GROUP_ROWS, BLOCK_BYTES // row_bytes))
    pieces = tuple(
        (shard.file, group)
        for shard in dataset.manifest.shards[split]
        for group in range(-(-shard.rows // ROW_GROUP_ROWS))
    )
    return Plan(pieces, max(1, studies // ROW_GROUP_ROWS), seed, rank, world_size)


@dataclass(frozen=True)
class BlockReader:
    """Reads, decodes and shuffles one block; runs in a Ray task and is a pure function of its fields."""

    dataset: Dataset
    plan: Plan
    config: LoaderConfig
    info: DatasetInfo
    masks: tuple[str, ...]
    reports: bool
    start: Position

    def __call__(self, ids: dict[str, NDArray[np.int64]]) -> Columns:
        """Decoded rows of block ``start.block + ids["id"][0]``, with ``block`` and ``row`` columns."""
        index = self.start.block + int(ids["id"][0])
        epoch, place, pieces = self.plan.block(index)
        names = column_names(self.masks, self.reports)
        parts = [
            decode(
                read_row_groups(self.dataset, file, [group], names),
                self.info,
                self.config,
                masks=self.masks,
                reports=self.reports,
            )
            for file, group in pieces
        ]
        columns: Columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        rows = len(columns["image"])
        order: NDArray[Any] = np.arange(rows)
        if self.plan.seed is not None:
            generator = np.random.default_rng((self.plan.seed, epoch, place))
            order = generator.permutation(rows)
            if self.config.order == "patients":
                order = _by_patient(columns["patient_id"], generator)
        first = self.start.row if index == self.start.block else 0
        columns = {name: values[order[first:]] for name, values in columns.items()}
        columns["block"] = np.full(rows - first, index)
        columns["row"] = np.arange(first, rows)
        return columns


def stream(
    dataset: Dataset,
    plan: Plan,
    config: LoaderConfig,
    *,
    batch_size: int,
    masks: tuple[str, ...] = (),
    reports: bool = False,
    start: Position | None = None,
    endless: bool = True,
    cpus: float | None = None,
) -> Iterator[tuple[Batch, Position]]:
    """Streams a rank's batches through Ray Data.

    Args:
        dataset: The ingested dataset.
        plan: From `make_plan`.
        config: Uncertainty policy, fold, block size.
        batch_size: Studies a batch.
        masks: Masks that batches carry.
        reports: Whether batches carry report texts.
        start: Where to begin; the beginning by default.
        endless: Epoch after epoch with full batches only; else one pass, whose last batch may be smaller.
        cpus: CPUs that this rank's decoding tasks may use at a time; all that are free by default.

    Yields:
        A batch, and the position after it: a stream started there continues with the next batch.
    """
    position = start or Position()
    info = dataset.info()
    remaining = plan.blocks_per_epoch - position.block
    while endless or position.block < plan.blocks_per_epoch:
        reader = BlockReader(dataset, plan, config, info, masks, reports, position)
        blocks = _execution(reader, SEGMENT_BLOCKS if endless else remaining, cpus)
        last_block = position.block + (SEGMENT_BLOCKS if endless else remaining)
        carried = 0
        for columns in blocks.iter_batches(
            batch_size=batch_size, batch_format="numpy", prefetch_batches=2, drop_last=endless
        ):
            position = Position(int(columns.pop("block")[-1]), int(columns.pop("row")[-1]) + 1)
            carried += 1
            yield collate(columns, info), position
        if endless and not carried:
            raise ValueError(
                f"loader: a segment of {SEGMENT_BLOCKS} blocks holds fewer than batch_size = {batch_size} "
                f"studies (fold {config.fold!r}). Lower the batch size or ingest more studies."
            )
        # Rows of the segment's last, incomplete batch are dropped: fewer than one batch in 256 blocks.
        position = Position(last_block)


def _execution(reader: BlockReader, blocks: int, cpus: float | None) -> ray.data.Dataset:
    execution = ray.data.range(blocks, override_num_blocks=blocks).map_batches(
        reader, batch_size=1, batch_format="numpy"
    )
    row_bytes = reader.info.image_size**2 * (1 + len(reader.masks))
    block_bytes = row_bytes * reader.plan.groups_per_block * ROW_GROUP_ROWS
    context = execution.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    options = copy.copy(context.execution_options)
    options.preserve_order = True
    options.resource_limits = ExecutionResources(
        cpu=cpus, object_store_memory=max(64 * 2**20, BLOCKS_IN_FLIGHT * block_bytes)
    )
    context.execution_options = options
    return execution


def _by_patient(patients: NDArray[Any], generator: np.random.Generator) -> NDArray[np.int64]:
    """Patients in random order, each one's rows together."""
    _, codes = np.unique(patients.astype(str), return_inverse=True)
    return np.argsort(generator.permutation(codes.max(initial=0) + 1)[codes], kind="stable")


@lru_cache(maxsize=4)
def _order(count: int, seed: int | None, epoch: int) -> tuple[int, ...]:
    if seed is None:
        return tuple(range(count))
    return tuple(np.random.default_rng((seed, epoch)).permutation(count).tolist())
