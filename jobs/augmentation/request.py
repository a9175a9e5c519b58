"""What an ``augment`` is asked for, and how many studies that takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from counterray.bundle import Bundle
from counterray.config import ConfigError
from counterray.data.dataset import Dataset
from counterray.evaluation.memorisation import NEAR_COPY_PERCENTILE
from counterray.models.generator import PREFIX, Edit, Severity
from jobs.generation.request import Request, WorkConfig, make_request

_HARMLESS = ("resources", "attempts_per_study")
"""Settings that change no study: they may differ between two runs into the same folder."""


class AugmentConfig(WorkConfig):
    """What to fill up, and what a synthetic study must pass."""

    targets: dict[str, float]
    """Finding to the prevalence that it should have in the training split, ``{finding.edema: 0.05}``."""
    severity: Severity = ""
    """How marked the findings should be."""
    generator: dict[str, Any] = Field(default_factory=dict)
    """Settings of the generator itself, such as ``{optimise: {iterations: 40}}`` for rare findings."""
    train: Literal["real_and_synthetic", "synthetic"] = "real_and_synthetic"
    """What the new training split holds, and so what counts towards ``targets``; validation and test stay as
    they are."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """The judge's probability of the finding below which a study is rejected."""
    near_copy_percentile: float = Field(default=NEAR_COPY_PERCENTILE, ge=0, lt=100)
    """Of the distances of real validation images to the training images of other patients: nearer than this
    is a near copy, which is rejected. 0 switches the gate off."""
    compared_studies: int = Field(default=20_000, ge=1)
    """Training images that synthetic ones are compared with, at most."""
    attempts_per_study: float = Field(default=4.0, ge=1)
    """Images made at most for each study that is needed."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of patients and of the noise."""
    batch_size: int = Field(default=32, ge=1)
    """Images that the generator makes at a time."""
    chunk_images: int = Field(default=64, ge=1)
    """Images of a chunk: the unit of parallel work and of resuming."""
    bank_studies: int = Field(default=2048, ge=1)
    """Training studies that a generator may take pathologies from, where it works so."""

    @field_validator("targets")
    @classmethod
    def _prevalences(cls, value: dict[str, float]) -> dict[str, float]:
        if not value:
            raise ValueError("name at least one finding and its prevalence")
        for name, share in value.items():
            if not name.startswith(PREFIX) or not 0 < share < 1:
                raise ValueError(
                    f"{name}={share:g} is not of the form finding.<name>=<share between 0 and 1>"
                )
        if f"{PREFIX}no_finding" in value:
            raise ValueError("no_finding is what is left without the others; it cannot be given to a patient")
        if sum(value.values()) >= 1:
            raise ValueError(
                f"the prevalences sum to {sum(value.values()):g}; every study is made for one finding, so "
                "they must sum to less than 1"
            )
        return dict(sorted(value.items()))

    def edit(self, finding: str) -> Edit:
        """What is asked of the generator for a finding, such as ``finding.edema``."""
        return Edit(do={finding: 1.0}, severity=self.severity)


def augment_request(
    bundle: Bundle, dataset: Dataset, config: AugmentConfig, judges: Mapping[str, Bundle]
) -> Request:
    """The request of an ``augment``, which a folder belongs to."""
    request = make_request("augment", bundle, dataset, config, harmless=_HARMLESS)
    checksums = {role: judge.checksum for role, judge in judges.items()}
    return Request(request.job, {**request.content, "judges": checksums})


def needed(config: AugmentConfig, dataset: Dataset) -> dict[str, int]:
    """Synthetic studies that each finding needs for its prevalence in the new training split.

    The smallest s with ``(P_f + s_f) / (K_f + Σ_g s_g) ≥ t_f`` for every finding f, of which P_f of the K_f
    studies with a known label are positive. A study made for one finding counts as known and negative for the
    others, which may be too cautious, so that prevalences end at or above their targets.

    Real studies that the new split leaves out count for nothing: P_f = K_f = 0. As shares alone give a split
    no size, a finding then needs at least its share of the real studies whose label is known.

    Raises:
        ConfigError: If the data do not label a finding.
    """
    counts = dataset.manifest.counts["train"]["findings"]
    positive, known = {}, {}
    for target in config.targets:
        name = target.removeprefix(PREFIX)
        if name not in counts:
            raise ConfigError(
                f"targets: {target}: no such finding in {dataset.location.uri}. There are: "
                f"{', '.join(dataset.manifest.finding_names)}."
            )
        positive[target] = int(counts[name]["present"])
        known[target] = positive[target] + int(counts[name]["absent"])
    if config.train == "real_and_synthetic":
        return smallest(config.targets, positive, known)
    none = dict.fromkeys(config.targets, 0)
    least = {name: _rounded_up(share * known[name]) for name, share in config.targets.items()}
    return smallest(config.targets, none, none, least=least)


def smallest(
    targets: Mapping[str, float],
    positive: Mapping[str, int],
    known: Mapping[str, int],
    *,
    least: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """The fixed point of `needed`, from ``least`` or 0; there is one since the targets sum to less than 1."""
    wanted = dict(least or dict.fromkeys(targets, 0))
    while True:
        total = sum(wanted.values())
        more = {
            name: max(wanted[name], _rounded_up(share * (known[name] + total) - positive[name]))
            for name, share in targets.items()
        }
        if more == wanted:
            return wanted
        wanted = more


def _rounded_up(studies: float) -> int:
    # A share such as 0.05 is a little more than 5 / 100 in binary.
    return math.ceil(round(studies, 9))
