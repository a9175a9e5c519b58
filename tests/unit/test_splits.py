"""A patient is in one split, the same everywhere, and held-out patients stay held out."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterray.config import ConfigError, validate
from counterray.data.dataset import SPLITS
from counterray.data.splits import (
    TRAIN_VALIDATION,
    SplitConfig,
    assign_splits,
    hash_split,
    resolve_leaks,
)

PATIENTS = [f"patient-{number}" for number in range(10_000)]


def test_fractions_are_met():
    counts = Counter(hash_split(patient, SplitConfig()) for patient in PATIENTS)
    # Three standard deviations of a binomial of 10,000 trials at 0.1 are 90.
    assert abs(counts["validation"] - 1000) < 90
    assert abs(counts["test"] - 1000) < 90


def test_a_known_patient_never_moves():
    """Written down once: a change of the hash would leak every published test set."""
    assert [hash_split(f"{number:08d}", SplitConfig()) for number in range(1, 9)] == [
        "train",
        "test",
        "test",
        "train",
        "train",
        "train",
        "validation",
        "train",
    ]


def test_another_salt_is_another_division():
    moved = sum(hash_split(p, SplitConfig()) != hash_split(p, SplitConfig(salt="x")) for p in PATIENTS)
    assert moved > 2000


def test_dividing_train_and_validation_keeps_the_proportion_and_makes_no_test():
    config = SplitConfig(train=0.6, validation=0.2, test=0.2)
    counts = Counter(hash_split(patient, config, within=TRAIN_VALIDATION) for patient in PATIENTS)
    assert counts["test"] == 0
    assert abs(counts["validation"] - 2500) < 130


def test_a_leaking_patient_goes_to_the_most_protected_split():
    splits, moved = resolve_leaks(
        ["a", "a", "b", "b", "c"], ["train", "test", "validation", "train", "train"]
    )
    assert splits == ["test", "test", "validation", "validation", "train"]
    assert moved == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(SPLITS))))
def test_no_patient_is_ever_in_two_splits(pairs):
    patients = [str(patient) for patient, _ in pairs]
    splits, _ = resolve_leaks(patients, [split for _, split in pairs])
    assert len(set(zip(patients, splits, strict=True))) == len(set(patients))
    ranks = {split: rank for rank, split in enumerate(SPLITS)}
    for (_, before), after in zip(pairs, splits, strict=True):
        assert ranks[after] >= ranks[before], "a held-out image is never trained on"


def test_an_official_split_fills_its_gaps_by_hash():
    config = SplitConfig(method="official")
    splits, moved = assign_splits(["a", "b", "c"], ["test", None, TRAIN_VALIDATION], config)
    assert splits == ["test", hash_split("b", config), hash_split("c", config, within=TRAIN_VALIDATION)]
    assert moved == 0


def test_the_nih_sample_leaks_and_is_mended(real_data):
    table = pd.read_csv(real_data / "nih_cxr14_64px" / "metadata.csv", dtype=str)
    official = table["repo_split"].replace({"valid": "validation"}).tolist()
    leaking = int((table.groupby("patient_id")["repo_split"].nunique() > 1).sum())
    patients = table["patient_id"].tolist()
    splits, moved = assign_splits(patients, official, SplitConfig(method="official"))
    assert moved == leaking == 26
    assert len(set(zip(patients, splits, strict=True))) == len(set(patients)) == 182


def test_fractions_must_sum_to_one():
    with pytest.raises(ConfigError, match="sum to 1"):
        validate(SplitConfig, {"train": 0.5})
