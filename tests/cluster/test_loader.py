"""The Ray stream: every study once an epoch, seeded, split over ranks, and resumable to the row."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise

import pytest
import torch

from counterray.data.batching import LoaderConfig, fold_of, read_batches
from counterray.data.dataset import Dataset
from counterray.data.loader import Position, make_plan, stream
from counterray.storage import StorageError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

SMALL_BLOCKS = LoaderConfig(block_studies=256)


def ids(dataset: Dataset, count: int, *, batch_size: int = 16, **plan: object) -> list[str]:
    settings = {"seed": 3, **plan}
    start = settings.pop("start", None)
    config = settings.pop("config", SMALL_BLOCKS)
    made = make_plan(dataset, "train", config, **settings)
    batches = islice(stream(dataset, made, config, batch_size=batch_size, start=start), count)
    return [image_id for batch, _ in batches for image_id in batch.image_ids]


def test_one_pass_without_seed_equals_the_plain_reader(phantom_dataset: Dataset) -> None:
    config = LoaderConfig()
    plan = make_plan(phantom_dataset, "test", config, seed=None)
    streamed = [
        batch
        for batch, _ in stream(
            phantom_dataset, plan, config, batch_size=16, masks=("heart",), reports=True, endless=False
        )
    ]
    plain = list(read_batches(phantom_dataset, "test", batch_size=16, masks=("heart",), reports=True))
    assert sum(len(batch) for batch in streamed) == phantom_dataset.rows("test")
    for ours, theirs in zip(streamed, plain, strict=True):
        assert ours.image_ids == theirs.image_ids
        assert ours.reports == theirs.reports
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.findings, theirs.findings)
        assert torch.equal(ours.masks["heart"], theirs.masks["heart"])
        for name, values in ours.measurements.items():
            assert torch.equal(values, theirs.measurements[name]), name


def test_an_epoch_holds_every_study_once_and_orders_differ_between_epochs(phantom_dataset: Dataset) -> None:
    rows = phantom_dataset.rows("train")
    seen = ids(phantom_dataset, 2 * rows, batch_size=1)
    assert Counter(seen[:rows]) == Counter(seen[rows:])
    assert set(Counter(seen[:rows]).values()) == {1}
    assert seen[:rows] != seen[rows:]


def test_equal_seeds_give_equal_orders(phantom_dataset: Dataset) -> None:
    first = ids(phantom_dataset, 20)
    assert ids(phantom_dataset, 20) == first
    assert ids(phantom_dataset, 20, seed=4) != first


def test_two_ranks_share_an_epoch_without_overlap(phantom_dataset: Dataset) -> None:
    plan = make_plan(phantom_dataset, "train", SMALL_BLOCKS, seed=3)
    assert plan.blocks_per_epoch >= 2
    ranks = [make_plan(phantom_dataset, "train", SMALL_BLOCKS, seed=3, rank=r, world_size=2) for r in (0, 1)]
    blocks = [plan.block(index) for index in range(4)]
    assert [ranks[0].block(0), ranks[1].block(0), ranks[0].block(1), ranks[1].block(1)] == blocks


@pytest.mark.parametrize("stop", [1, 19])
def test_a_stream_started_at_a_position_continues_exactly(phantom_dataset: Dataset, stop: int) -> None:
    config = SMALL_BLOCKS
    plan = make_plan(phantom_dataset, "train", config, seed=3)
    whole = list(islice(stream(phantom_dataset, plan, config, batch_size=16), 24))
    position = whole[stop - 1][1]
    rest = list(islice(stream(phantom_dataset, plan, config, batch_size=16, start=position), 24 - stop))
    for (ours, _), (theirs, _) in zip(rest, whole[stop:], strict=True):
        assert ours.image_ids == theirs.image_ids
        assert torch.equal(ours.image, theirs.image)


def test_folds_divide_the_patients(phantom_dataset: Dataset) -> None:
    folds = {}
    for fold in ("a", "b"):
        config = LoaderConfig(fold=fold)
        plan = make_plan(phantom_dataset, "train", config, seed=None)
        stored = stream(phantom_dataset, plan, config, batch_size=16, endless=False)
        folds[fold] = {patient for batch, _ in stored for patient in batch.patient_ids}
    assert folds["a"]
    assert folds["b"]
    assert not folds["a"] & folds["b"]
    assert {fold_of(patient) for patient in folds["a"]} == {"a"}


def test_an_empty_split_and_one_that_is_none_are_named(phantom_dataset: Dataset) -> None:
    with pytest.raises(StorageError, match=r"no split 'holdout'; splits are train, validation, test"):
        make_plan(phantom_dataset, "holdout", LoaderConfig(), seed=0)
    shards = {**phantom_dataset.manifest.shards, "test": ()}
    empty = replace(phantom_dataset, manifest=phantom_dataset.manifest.model_copy(update={"shards": shards}))
    with pytest.raises(StorageError, match=r"no study in split 'test' \(with studies: train, validation"):
        make_plan(empty, "test", LoaderConfig(), seed=0)


def test_a_batch_size_beyond_the_data_is_an_error(phantom_dataset: Dataset) -> None:
    plan = make_plan(phantom_dataset, "train", LoaderConfig(), seed=0)
    batches = stream(phantom_dataset, plan, LoaderConfig(), batch_size=1_000_000, start=Position())
    with pytest.raises(StorageError, match="batch_size = 1000000 is more than"):
        next(batches)


def test_patients_keep_their_studies_together(phantom_dataset: Dataset) -> None:
    config = LoaderConfig(order="patients")
    plan = make_plan(phantom_dataset, "train", config, seed=1)
    rows = phantom_dataset.rows("train")
    batches = islice(stream(phantom_dataset, plan, config, batch_size=1), rows)
    patients = [batch.patient_ids[0] for batch, _ in batches]
    runs = sum(before != after for before, after in pairwise(patients)) + 1
    assert runs == len(set(patients)) < rows
