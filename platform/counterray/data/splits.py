"""Which split a patient belongs to: by salted hash, or as the source says, never in two."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from counterray.config import Config
from counterray.data.dataset import SPLITS

TRAIN_VALIDATION = "train_validation"
"""A source's own split that it leaves to the user to divide, such as NIH's ``train_val_list.txt``."""


class SplitConfig(Config):
    """How patients are divided."""

    method: Literal["hash", "official"] = "hash"
    """``hash`` divides by a salted hash of the patient; ``official`` takes the source's own split."""
    train: float = 0.8
    """Fraction of the patients [0 to 1]."""
    validation: float = 0.1
    """Fraction of the patients [0 to 1]."""
    test: float = 0.1
    """Fraction of the patients [0 to 1]."""
    salt: str = "counterray"
    """Another salt gives another division."""

    @model_validator(mode="after")
    def _check_fractions(self) -> SplitConfig:
        fractions = (self.train, self.validation, self.test)
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(
                f"train, validation and test must be at least 0 and sum to 1; they are {fractions}"
            )
        return self


def hash_split(patient_id: str, config: SplitConfig, within: str | None = None) -> str:
    """The split of a patient by a salted hash, the same on every machine and in any order.

    Args:
        patient_id: The patient.
        config: Fractions and salt.
        within: ``train_validation`` to divide only between train and validation, in the proportion of
            their fractions.
    """
    digest = hashlib.sha256(f"{config.salt}\0{patient_id}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if within == TRAIN_VALIDATION:
        position *= config.train + config.validation
    if position < config.train:
        return "train"
    if position < config.train + config.validation or within == TRAIN_VALIDATION:
        return "validation"
    return "test"


def resolve_leaks(patient_ids: Sequence[str], splits: Sequence[str]) -> tuple[list[str], int]:
    """Puts every patient into one split.

    A patient found in several goes, with all images, to the most protected of them: test before validation
    before train. So nothing that was held out is ever trained on.

    Args:
        patient_ids: ``N`` patients, one for each image.
        splits: ``N`` splits of the images, each one of `SPLITS`.

    Returns:
        ``N`` splits without a leak, and the number of patients that were moved.
    """
    ranks: dict[str, int] = {}
    leaking: set[str] = set()
    for patient, split in zip(patient_ids, splits, strict=True):
        rank = SPLITS.index(split)
        known = ranks.setdefault(patient, rank)
        if known != rank:
            leaking.add(patient)
            ranks[patient] = max(known, rank)
    return [SPLITS[ranks[patient]] for patient in patient_ids], len(leaking)


def assign_splits(
    patient_ids: Sequence[str], official: Sequence[str | None], config: SplitConfig
) -> tuple[list[str], int]:
    """The split of every image, and the number of patients that an official split had in two.

    Args:
        patient_ids: ``N`` patients.
        official: ``N`` splits of the source: one of `SPLITS`, ``train_validation``, or ``None``.
        config: The method. An image without an official split is divided by hash.
    """
    if config.method == "hash":
        return [hash_split(patient, config) for patient in patient_ids], 0
    splits = [
        split if split in SPLITS else hash_split(patient, config, within=split)
        for patient, split in zip(patient_ids, official, strict=True)
    ]
    return resolve_leaks(patient_ids, splits)
