"""Sets of images that classifiers are asked about, in chunks; pure functions of data and request.

A chunk's name is a checksum over all that decides its images, so that it is found again by any audit of the
same studies with the same generator, whatever else differs. Tables hold identifiers and places, no pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from counterray.audits.dose_scores import check_patients
from counterray.audits.errors import AuditError
from counterray.data.batching import fold_of
from counterray.data.dataset import Dataset
from counterray.data.study import ATTRIBUTES
from counterray.evaluation.intervals import Floats
from jobs.auditing.doses import compared_doses
from jobs.auditing.levels import with_patients
from jobs.auditing.request import AuditJobConfig
from jobs.auditing.views import Views
from jobs.generation.selection import list_studies, read_rows

FORMAT = 3
"""Version of the cached files; raised when they change."""


@dataclass(frozen=True)
class SetChunk:
    """Studies whose images are made, scored and judged together.

    Attributes:
        name: Checksum.
        prefix: Of the images' names in an export.
        views: The images of each study.
        studies: `STUDY_SCHEMA` and ``number`` (position of the study in its split).
    """

    name: str
    prefix: str
    views: Views
    studies: pa.Table

    def keys(self, view: str) -> list[str]:
        """Names of the images of one view in an export; they hold no identifier."""
        return [f"{self.prefix}-{number:07d}-{view}" for number in self.studies["number"].to_pylist()]


@dataclass(frozen=True)
class ImageSet:
    """All images of one kind.

    Attributes:
        chunks: In the order of the studies.
        studies: All studies, from `study_table`.
        set_aside: A sentence on levels that are left out for want of patients; empty where there is none.
    """

    chunks: tuple[SetChunk, ...]
    studies: pa.Table
    set_aside: str = ""

    @property
    def views(self) -> Views:
        """The images of each study."""
        return self.chunks[0].views


def study_table(dataset: Dataset, split: str, *, limit: int | None, fold: str = "all") -> pa.Table:
    """Studies of a split with ``number``, ``findings`` and ``attribute.<name>`` of each attribute.

    Raises:
        AuditError: If no study is left.
        StorageError: If the split has none.
    """
    studies = list_studies(dataset, split, limit=limit)
    names = list(ATTRIBUTES)
    rows = read_rows(dataset, studies, ["findings", *names])
    studies = studies.append_column("findings", rows["findings"])
    for name in names:
        studies = studies.append_column(_column(name), rows[name])
    studies = studies.append_column("number", pa.array(range(len(studies)), pa.int64()))
    if fold != "all":
        keep = [fold_of(patient) == fold for patient in studies["patient_id"].to_pylist()]
        studies = studies.filter(pa.array(keep))
    if not len(studies):
        raise AuditError(f"No study of split {split!r} is left with fold = {fold!r}. Raise studies.")
    return studies


def observed_set(dataset: Dataset, studies: pa.Table, *, split: str, size: int) -> ImageSet:
    """The studies' own images."""
    identity = {"format": FORMAT, "data": dataset.manifest.fingerprint, "split": split}
    return _cut(studies, Views(), identity, name=split, size=size)


def counterfactual_set(
    dataset: Dataset,
    studies: pa.Table,
    *,
    attribute: str,
    identity: Mapping[str, Any],
    nulls: int,
    config: AuditJobConfig,
) -> ImageSet:
    """The studies whose attribute is known, at each level or dose and under null interventions.

    Args:
        dataset: Of the studies.
        studies: From `study_table`.
        attribute: Which attribute.
        identity: All that decides what the generator makes.
        nulls: Null interventions on each study.
        config: Levels, doses, split and limits.

    Raises:
        AuditError: If the attribute is unknown, has fewer than two levels with patients enough, or one that
            ``levels`` names has too few, or is continuous and its doses are not chosen or cannot be compared.
    """
    if _kind(dataset, attribute) == "continuous":
        views, known = _at_doses(studies, attribute, nulls=nulls, config=config)
        return _counterfactuals(dataset, known, views, identity=identity, config=config)
    possible = compared_levels(dataset, attribute, config)
    observed = studies[_column(attribute)]
    compared = with_patients(
        attribute,
        possible,
        observed.to_pylist(),
        studies["patient_id"].to_pylist(),
        minimum_patients=config.audit.minimum_patients,
        named=attribute in config.levels,
    )
    levels = compared.names
    known = studies.filter(pc.is_in(observed, pa.array(levels, pa.string())))
    views = Views(attribute, levels, nulls)
    images = _counterfactuals(dataset, known, views, identity=identity, config=config)
    return replace(images, set_aside=compared.set_aside)


def _counterfactuals(
    dataset: Dataset,
    known: pa.Table,
    views: Views,
    *,
    identity: Mapping[str, Any],
    config: AuditJobConfig,
) -> ImageSet:
    whole = {
        "format": FORMAT,
        "data": dataset.manifest.fingerprint,
        "split": config.split,
        "attribute": views.attribute,
        **({"doses": list(views.doses)} if views.doses else {"levels": list(views.levels)}),
        "nulls": views.nulls,
        "seed": config.seed,
        **identity,
    }
    return _cut(known, views, whole, name=views.attribute, size=config.chunk_studies)


def _kind(dataset: Dataset, attribute: str) -> str:
    """``categorical`` or ``continuous``.

    Raises:
        AuditError: If there is no such attribute.
    """
    if attribute not in ATTRIBUTES:
        there = [name for name in ATTRIBUTES if dataset.manifest.vocabulary.get(name)]
        continuous = [name for name, kind in ATTRIBUTES.items() if kind == "continuous"]
        raise AuditError(
            f"Attribute {attribute!r} is unknown. Attributes of the data: {', '.join(there)}; continuous, "
            f"compared at doses: {', '.join(continuous)}."
        )
    return ATTRIBUTES[attribute]


def _at_doses(
    studies: pa.Table, attribute: str, *, nulls: int, config: AuditJobConfig
) -> tuple[Views, pa.Table]:
    """The views of a continuous attribute, and the studies of which it is known."""
    known = studies.filter(pc.is_finite(studies[_column(attribute)]))
    doses = compared_doses(attribute, config.doses.get(attribute), own_doses(known, attribute))
    minimum, setting = config.audit.minimum_patients, "audit.minimum_patients"
    check_patients(attribute, known["patient_id"].to_pylist(), minimum_patients=minimum, setting=setting)
    return Views(attribute, nulls=nulls, doses=doses), known


def compared_levels(dataset: Dataset, attribute: str, config: AuditJobConfig) -> tuple[str, ...]:
    """The levels of a categorical attribute that are compared.

    Raises:
        AuditError: If there are not two, or one is none of the data's.
    """
    there = dataset.manifest.vocabulary.get(attribute, ())
    chosen = config.levels.get(attribute, there)
    unknown = [level for level in chosen if level not in there]
    if unknown:
        raise AuditError(
            f"levels.{attribute} names {', '.join(unknown)}, which the data do not have. They have: "
            f"{', '.join(there) or 'none'}."
        )
    if len(set(chosen)) < 2:
        raise AuditError(
            f"Attribute {attribute!r} has {len(set(chosen))} level(s) here "
            f"({', '.join(chosen) or 'none'}); an "
            "audit compares two or more. Choose another attribute, or data where it differs."
        )
    return tuple(chosen)


def own_levels(studies: pa.Table, attribute: str, levels: Sequence[str]) -> NDArray[np.int64]:
    """``[N]`` position of each study's own level."""
    return np.array(
        [levels.index(value) for value in studies[_column(attribute)].to_pylist()], dtype=np.int64
    )


def own_doses(studies: pa.Table, attribute: str) -> Floats:
    """``[N]`` each study's own dose of a continuous attribute."""
    return np.array(studies[_column(attribute)].to_pylist(), dtype=np.float64)


def labels_of(studies: pa.Table, finding: str) -> Floats:
    """``[N]`` labels 1, 0 or NaN where it is not known, uncertain, or the data have no such finding."""
    values = [row.get(finding) for row in studies["findings"].to_pylist()]
    return np.array([float(value) if value in (0, 1) else np.nan for value in values])


def _column(attribute: str) -> str:
    """Name of an attribute's column: the place of a study has a ``group`` of its own."""
    return f"attribute.{attribute}"


def _cut(studies: pa.Table, views: Views, identity: Mapping[str, Any], *, name: str, size: int) -> ImageSet:
    """Chunks by position in the split, so that more studies leave earlier chunks as they are."""
    base = _digest(identity)
    group = np.asarray(studies["number"].to_pylist()) // size
    places = studies.select(["image_id", "patient_id", "file", "group", "row", "number"])
    chunks = []
    for number in np.unique(group):
        part = places.filter(pa.array(group == number))
        checksum = _digest({"set": base, "images": part["image_id"].to_pylist()})
        chunks.append(SetChunk(checksum[:32], f"{name}-{base[:8]}", views, part))
    return ImageSet(tuple(chunks), studies)


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
