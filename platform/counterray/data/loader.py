"""Ray Data: from Parquet shards on storage to a rank's endless, seeded, resumable stream of batches.

The unit of work is a *block*: a few row groups drawn from all over the split, read, decoded and shuffled
together by one Ray task. Which row groups make block g is a pure function of (seed, g), so a rank that
knows its `Position` continues exactly where it stopped, and no process ever holds the list of studies.
Ranks take blocks in turn: rank r of W reads blocks r, r + W, r + 2W, and so on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    rebatch,
)
from counterray.data.dataset import ROW_GROUP_ROWS, Dataset, DatasetInfo
from counterray.data.study import Batch
from counterray.storage import StorageError

BLOCK_BYTES = 64 * 2**20
"""Upper bound of a decoded block [bytes]; half of Ray Data's own target."""

SEGMENT_BLOCKS = 8
"""Most blocks of one Ray Data execution; starting the next one costs a fraction of a second."""

SEGMENT_BYTES = 256 * 2**20
"""Most decoded bytes of one execution; two are held at a time."""


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
        rows: Studies of the split.
        groups_per_block: Row groups in a block.
        seed: Of the order, or ``None`` for the stored order (validation, evaluation).
        rank: This rank.
        world_size: Number of ranks.
    """

    pieces: tuple[tuple[str, int], ...]
    rows: int
    groups_per_block: int
    seed: int | None
    rank: int = 0
    world_size: int = 1

    @property
    def blocks_per_epoch(self) -> int:
        """Blocks that hold every study once, over all ranks."""
        return -(-len(self.pieces) // self.groups_per_block)

    @property
    def block_rows(self) -> int:
        """Rows of a block at most."""
        return self.groups_per_block * ROW_GROUP_ROWS

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
    tensors: tuple[str, ...] = (),
) -> Plan:
    """Plans a split for a rank; blocks are smaller than configured where images are large.

    Raises:
        StorageError: If the split has no study.
    """
    dataset.require_split(split)
    row_bytes = _row_bytes(dataset.info(), masks, tensors)
    studies = min(config.block_studies, max(ROW_GROUP_ROWS, BLOCK_BYTES // row_bytes))
    pieces = tuple(
        (shard.file, group)
        for shard in dataset.manifest.shards[split]
        for group in range(-(-shard.rows // ROW_GROUP_ROWS))
    )
    return Plan(pieces, dataset.rows(split), max(1, studies // ROW_GROUP_ROWS), seed, rank, world_size)


@dataclass(frozen=True)
class BlockReader:
    """Reads, decodes and shuffles one block; runs in a Ray task and is a pure function of its fields."""

    dataset: Dataset
    plan: Plan
    config: LoaderConfig
    info: DatasetInfo
    masks: tuple[str, ...]
    reports: bool
    tensors: tuple[str, ...]
    start: Position

    @property
    def segment_blocks(self) -> int:
        """Blocks of one segment: two of them fit into `SEGMENT_BYTES` each."""
        block = _row_bytes(self.info, self.masks, self.tensors) * self.plan.block_rows
        return max(1, min(SEGMENT_BLOCKS, SEGMENT_BYTES // block))

    def __call__(self, ids: dict[str, NDArray[np.int64]], *, first: int) -> Columns:
        """Decoded rows of block ``first + ids["id"][0]``, with ``block`` and ``row`` columns."""
        index = first + int(ids["id"][0])
        epoch, place, pieces = self.plan.block(index)
        names = column_names(self.masks, self.reports, self.tensors)
        parts = [
            decode(
                read_row_groups(self.dataset, file, [group], names),
                self.info,
                self.config,
                masks=self.masks,
                reports=self.reports,
                tensors=self.tensors,
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
            if self.config.balance and rows:
                weights = self._rarity(columns) ** self.config.balance
                order = generator.choice(rows, rows, p=weights / weights.sum())
        skipped = self.start.row if index == self.start.block else 0
        columns = {name: values[order[skipped:]] for name, values in columns.items()}
        columns["block"] = np.full(rows - skipped, index)
        columns["row"] = np.arange(skipped, rows)
        return columns

    def _rarity(self, columns: Columns) -> NDArray[np.float64]:
        """One over the prevalence of each row's rarest finding, ``[n]``; 1 where it shows none."""
        shown = (columns["findings"] == 1) & columns["finding_mask"]
        prevalence = self.dataset.manifest.prevalence(self.info.finding_names)
        rarity = np.where(shown, 1 / np.maximum(prevalence, 1 / self.plan.rows), 1.0)
        return np.asarray(rarity.max(axis=1, initial=1.0))


def stream(
    dataset: Dataset,
    plan: Plan,
    config: LoaderConfig,
    *,
    batch_size: int,
    masks: tuple[str, ...] = (),
    reports: bool = False,
    tensors: tuple[str, ...] = (),
    start: Position | None = None,
    endless: bool = True,
    cpus: float | None = None,
) -> Iterator[tuple[Batch, Position]]:
    """Streams a rank's batches through Ray Data.

    Args:
        dataset: The ingested dataset.
        plan: From `make_plan`.
        config: Uncertainty policy, fold, confounding, block size.
        batch_size: Studies a batch.
        masks: Masks that batches carry.
        reports: Whether batches carry report texts and refined reports.
        tensors: Tensors of an earlier job that batches carry.
        start: Where to begin; the beginning by default.
        endless: Epoch after epoch with full batches only; else one pass, whose last batch may be smaller.
        cpus: CPUs that this rank's decoding tasks may use at a time; all that are free by default.

    Yields:
        A batch, and the position after it: a stream started there continues with the next batch.
    """
    info = dataset.info()
    if endless and plan.rows < batch_size:
        raise StorageError(
            f"batch_size = {batch_size} is more than the {plan.rows} studies of the split. Lower it, or "
            "ingest more studies."
        )
    if config.confounding is not None:
        config.confounding.require(info)
    missing = sorted(set(tensors) - set(info.tensors))
    if missing:
        raise StorageError(
            f"The dataset at {dataset.location.uri} has no {', '.join(missing)} of its studies. Make them "
            "once with python -m jobs encode, and give --data its result."
        )
    reader = BlockReader(dataset, plan, config, info, masks, reports, tensors, start or Position())
    for columns in rebatch(_blocks(reader, endless=endless, cpus=cpus), batch_size):
        position = Position(int(columns.pop("block")[-1]), int(columns.pop("row")[-1]) + 1)
        yield collate(columns, info), position


def _blocks(reader: BlockReader, *, endless: bool, cpus: float | None) -> Iterator[Columns]:
    """Blocks from the reader's start on; while one segment is consumed the next is being made.

    A segment is a Ray Data execution of its own that runs to its end: an execution that waits for its
    consumer polls all the while, in the process that trains.
    """
    block, last = reader.start.block, reader.plan.blocks_per_epoch
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="segment") as maker:

        def make(first: int) -> Future[ray.data.MaterializedDataset] | None:
            count = reader.segment_blocks if endless else min(reader.segment_blocks, last - first)
            return maker.submit(_segment, reader, first, count, cpus) if count > 0 else None

        coming, empty = make(block), 0
        while coming is not None:
            segment = coming.result()
            block += reader.segment_blocks
            coming = make(block)
            for columns in segment.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
                empty = 0 if len(columns["image"]) else empty + 1
                if empty >= last:
                    raise StorageError(
                        f"loader.fold {reader.config.fold!r} and loader.confounding leave no study of this "
                        "split."
                    )
                yield columns


def _segment(reader: BlockReader, first: int, count: int, cpus: float | None) -> ray.data.MaterializedDataset:
    execution = ray.data.range(count, override_num_blocks=count).map_batches(
        reader, batch_size=1, batch_format="numpy", fn_kwargs={"first": first}
    )
    context = execution.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    options = copy.copy(context.execution_options)
    options.preserve_order = True
    options.resource_limits = ExecutionResources(cpu=cpus)
    context.execution_options = options
    return execution.materialize()


def _row_bytes(info: DatasetInfo, masks: tuple[str, ...], tensors: tuple[str, ...]) -> int:
    """Size of a decoded study's image, masks and tensors [bytes]."""
    sizes = [
        math.prod(info.tensors[name].shape) * np.dtype(info.tensors[name].dtype).itemsize
        for name in tensors
        if name in info.tensors
    ]
    return info.image_size**2 * (1 + len(masks)) + sum(sizes)


def _by_patient(patients: NDArray[Any], generator: np.random.Generator) -> NDArray[np.int64]:
    """Patients in random order, each one's rows together."""
    _, codes = np.unique(patients.astype(str), return_inverse=True)
    return np.argsort(generator.permutation(codes.max(initial=0) + 1)[codes], kind="stable")


@lru_cache(maxsize=4)
def _order(count: int, seed: int | None, epoch: int) -> tuple[int, ...]:
    if seed is None:
        return tuple(range(count))
    return tuple(np.random.default_rng((seed, epoch)).permutation(count).tolist())
