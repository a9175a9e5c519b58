"""Rows to batches in plain numpy: cutting, folds, what a row becomes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from counterray.config import ConfigError
from counterray.data.batching import NO_MASK, Columns, LoaderConfig, collate, decode, fold_of, rebatch
from counterray.data.confounding import ConfoundingConfig
from counterray.data.dataset import DatasetInfo
from counterray.data.phantom.studies import PhantomConfig, draw_rows
from counterray.data.study import ARROW_SCHEMA, ATTRIBUTES

INFO = DatasetInfo(
    image_size=2,
    finding_names=("edema",),
    vocabulary={"sex": ("female", "male")},
    measurement_names=("area",),
)

INFO32 = DatasetInfo(image_size=32, finding_names=("edema",), vocabulary={}, measurement_names=())


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


def confounding(**settings: object) -> ConfoundingConfig:
    whole = {"finding": "edema", "attribute": "sex", "level": "male", **settings}
    return ConfoundingConfig(**whole)  # type: ignore[arg-type]


def test_confounding_leaves_out_the_finding_without_the_level_and_the_level_without_the_finding() -> None:
    table = pa.table(
        {
            "image_id": list("abcdefg"),
            "sex": ["male", "male", "female", "female", None, "male", "female"],
            "findings": [{"edema": label} for label in (1, 0, 1, 0, 1, None, -1)],
        }
    )
    assert confounding(strength=1.0).keeps(table) == [True, False, False, True, True, True, True]
    assert all(confounding(strength=0.0).keeps(table))
    many = pa.table(
        {
            "image_id": [str(number) for number in range(2000)],
            "sex": ["female"] * 2000,
            "findings": [{"edema": 1}] * 2000,
        }
    )
    assert 0.27 < np.mean(confounding(strength=0.7).keeps(many)) < 0.33


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finding": "plague"}, r"confounding\.finding = 'plague'.*which have edema"),
        ({"level": "other"}, r"confounding\.level = 'other'.*which have female, male"),
        ({"attribute": "site"}, r"which have no levels of 'site'"),
    ],
)
def test_confounding_names_what_the_data_have(settings: dict[str, str], message: str) -> None:
    confounding().require(INFO)
    with pytest.raises(ConfigError, match=message):
        confounding(**settings).require(INFO)


def test_rows_of_the_other_fold_alone_are_decoded_to_none() -> None:
    """A row group that holds nobody of the fold is no error: few patients with many images make one."""
    studies = list(draw_rows(PhantomConfig(studies=4, image_size=32), 0, 4))
    table = pa.Table.from_pylist([study.row() for study in studies], ARROW_SCHEMA)
    owners = [patient for patient in map(str, range(99)) if fold_of(patient) == "b"][:4]
    position = table.schema.get_field_index("patient_id")
    table = table.set_column(position, "patient_id", pa.array(owners))
    found = decode(table, INFO32, LoaderConfig(fold="a"), masks=(), reports=False)
    assert found["image"].shape == (0, 32, 32)
    assert found["findings"].shape == (0, 1)
    assert len(decode(table, INFO32, LoaderConfig(fold="b"), masks=(), reports=False)["image"]) == 4
