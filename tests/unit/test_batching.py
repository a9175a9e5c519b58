"""Rows to batches in plain numpy: cutting, folds, what a row becomes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from counterray.data.batching import NO_MASK, Columns, collate, fold_of, rebatch
from counterray.data.dataset import DatasetInfo
from counterray.data.study import ATTRIBUTES

INFO = DatasetInfo(
    image_size=2,
    finding_names=("edema",),
    vocabulary={"sex": ("female", "male")},
    measurement_names=("area",),
)


def columns(first: int, count: int) -> Columns:
    return {"image": np.zeros((count, 2, 2), np.uint8), "row": np.arange(first, first + count)}


@pytest.mark.parametrize("sizes", [(10,), (3, 4, 3), (1,) * 10, (0, 7, 0, 3)])
def test_cutting_keeps_every_row_in_order(sizes: tuple[int, ...]) -> None:
    starts = np.cumsum((0, *sizes[:-1]))
    parts = [columns(int(start), size) for start, size in zip(starts, sizes, strict=True)]
    batches = list(rebatch(parts, 4))
    assert [len(batch["image"]) for batch in batches] == [4, 4, 2]
    assert np.concatenate([batch["row"] for batch in batches]).tolist() == list(range(10))


def test_nothing_gives_no_batch() -> None:
    assert list(rebatch([], 4)) == []
    assert list(rebatch([columns(0, 0)], 4)) == []


def test_a_batch_by_hand() -> None:
    attributes = np.full((2, len(ATTRIBUTES)), np.nan, np.float32)
    attributes[:, list(ATTRIBUTES).index("sex")] = (1, 0)
    batch = collate(
        {
            "image": np.array([[[0, 255], [51, 204]], [[102, 153], [0, 0]]], np.uint8),
            "attributes": attributes,
            "findings": np.array([[1.0], [0.0]], np.float32),
            "finding_mask": np.array([[True], [False]]),
            "measurements": np.array([[2.5], [np.nan]]),
            "mask.heart": np.array([[[0, 1], [1, 0]], [[NO_MASK] * 2] * 2], np.uint8),
            "image_id": np.array(["i", "j"], dtype=object),
            "patient_id": np.array(["p", "q"], dtype=object),
        },
        INFO,
    )
    assert batch.image.shape == (2, 1, 2, 2)
    assert torch.allclose(batch.image[0, 0], torch.tensor([[-1.0, 1.0], [-0.6, 0.6]]))
    assert batch.attributes["sex"].tolist() == [1, 0]
    assert batch.attributes["age"].isnan().all()
    assert batch.findings[:, 0].tolist() == [1, 0]
    assert batch.finding_mask[:, 0].tolist() == [True, False]
    assert batch.measurements["area"][0] == 2.5
    assert batch.masks["heart"][0, 0].tolist() == [[0, 1], [1, 0]]
    assert batch.masks["heart"][1].isnan().all()
    assert batch.image_ids == ("i", "j")
    half = batch.select(torch.tensor([1]))
    assert half.patient_ids == ("q",)
    assert torch.equal(half.image, batch.image[1:])


def test_folds_halve_the_patients_and_never_move_one() -> None:
    folds = [fold_of(f"patient-{number}") for number in range(2000)]
    assert folds == [fold_of(f"patient-{number}") for number in range(2000)]
    assert 0.45 < folds.count("a") / 2000 < 0.55
