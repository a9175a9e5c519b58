"""An ingested dataset on storage: its manifest, its shards, and what a stage may know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pyarrow.fs import FileType
from pydantic import Field

from counterray.config import Config
from counterray.storage import Location, StorageError, resolve

FORMAT = 1
"""Version of the folder's layout; a reader refuses any other."""

SPLITS = ("train", "validation", "test")

ROW_GROUP_ROWS = 256
"""Rows of every Parquet row group but a shard's last: the unit in which loaders shuffle and read."""


class Shard(Config):
    """One Parquet file of a split."""

    file: str
    """Path relative to the dataset's folder, such as ``train/part-00000.parquet``."""
    rows: int
    """Number of studies in it."""
    bytes: int
    """Size of the file [bytes]; a shorter file is a truncated one."""
    sha256: str
    """Checksum of the file."""


class TensorInfo(Config):
    """A tensor that an earlier job computed of each study; a column ``tensor.<name>`` of the shards."""

    shape: tuple[int, ...]
    """Shape of one study's tensor."""
    dtype: Literal["float16", "uint8"]
    """Type of the stored numbers."""
    mean: float = 0.0
    """Mean of all elements over the training split."""
    std: float = 1.0
    """Standard deviation of all elements over the training split."""


class DatasetManifest(Config):
    """``manifest.json``: written last, so that a dataset without it is not a dataset."""

    format: int = FORMAT
    """Version of the folder's layout."""
    study_schema: int
    """Version of the Arrow row, ``study.SCHEMA_VERSION``."""
    source: str
    """Name of the source."""
    config: dict[str, Any]
    """The resolved ingest configuration."""
    code_version: str
    """Version of counterray that wrote it."""
    image_size: int
    """Edge of the square images [px]."""
    finding_names: tuple[str, ...]
    """Findings that have at least one label, in the vocabulary's order."""
    vocabulary: dict[str, tuple[str, ...]]
    """Categorical attribute to its values, in the order of their codes."""
    measurement_names: tuple[str, ...] = ()
    """Names of the measurements."""
    mask_names: tuple[str, ...] = ()
    """Names of the masks."""
    tensors: dict[str, TensorInfo] = Field(default_factory=dict)
    """Name to what an earlier job computed of each study."""
    parents: dict[str, str] = Field(default_factory=dict)
    """Role to the checksum of each bundle that took part in computing ``tensors``."""
    encoding: dict[str, Any] = Field(default_factory=dict)
    """Settings of the job that computed ``tensors``."""
    counts: dict[str, Any]
    """Split to ``studies``, ``patients``, and counts by finding, sex and age band."""
    quarantined: dict[str, int]
    """Reason to number of images set aside; each is listed in ``quarantine.parquet``."""
    notes: dict[str, int] = Field(default_factory=dict)
    """Counts that are no fault, such as ``not_present``: rows of a label file without an image."""
    unknown_labels: dict[str, int] = Field(default_factory=dict)
    """Labels of the source that its map does not know, to the number of images with them."""
    shards: dict[str, tuple[Shard, ...]]
    """Split to its shards."""
    fingerprint: str
    """Checksum over the content of all studies, whatever the order in which they were written."""

    def prevalence(self, names: Sequence[str], split: str = "train") -> NDArray[np.float64]:
        """Share of a split's studies that show each finding, among those where it is known; 0 if none is."""
        counts = self.counts[split]["findings"]
        known = [counts.get(name, {"present": 0, "absent": 0}) for name in names]
        return np.array([c["present"] / max(1, c["present"] + c["absent"]) for c in known])


@dataclass(frozen=True)
class DatasetInfo:
    """What a stage may know of its data before the first batch.

    Attributes:
        image_size: Edge of the square images [px].
        finding_names: Findings with labels in this dataset, in the order of ``Batch.findings``.
        vocabulary: Categorical attribute to its values; a code in ``Batch.attributes`` is an index here.
        measurement_names: Names in ``Batch.measurements``.
        mask_names: Names in ``Batch.masks``.
        tensors: What an earlier job computed of each study, such as latents.
        parents: Role to the checksum of each bundle that computed them.
        encoding: Settings of the job that computed them.
        reports: The training split's report texts, only where a stage says ``needs_reports``.
        fingerprint: Fingerprint of the dataset's content.
    """

    image_size: int
    finding_names: tuple[str, ...]
    vocabulary: Mapping[str, tuple[str, ...]]
    measurement_names: tuple[str, ...] = ()
    mask_names: tuple[str, ...] = ()
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    encoding: Mapping[str, Any] = field(default_factory=dict)
    reports: tuple[str, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True)
class Dataset:
    """An ingested dataset: where it is, and its manifest."""

    location: Location
    manifest: DatasetManifest

    def shard_paths(self, split: str) -> list[str]:
        """Paths of a split's shards inside ``location.filesystem``."""
        return [(self.location / shard.file).path for shard in self.manifest.shards.get(split, ())]

    def rows(self, split: str) -> int:
        """Number of studies in a split."""
        return sum(shard.rows for shard in self.manifest.shards.get(split, ()))

    def require_split(self, split: str) -> None:
        """Raises if there is no such split, or it has no study.

        Raises:
            StorageError: With the splits that do have studies.
        """
        if split not in SPLITS:
            raise StorageError(f"There is no split {split!r}; splits are {', '.join(SPLITS)}.")
        if self.rows(split) == 0:
            present = ", ".join(name for name in SPLITS if self.rows(name)) or "none"
            raise StorageError(
                f"The dataset at {self.location.uri} has no study in split {split!r} (with studies: {present}"
                "). Ingest more studies, or change the fractions of the splits."
            )

    def verify(self) -> None:
        """Compares every shard's size with the manifest's.

        Raises:
            StorageError: Naming the first shard that is missing or has another size.
        """
        shards = [shard for split in self.manifest.shards.values() for shard in split]
        infos = self.location.filesystem.get_file_info([(self.location / s.file).path for s in shards])
        for shard, info in zip(shards, infos, strict=True):
            if info.type != FileType.File:
                raise StorageError(
                    f"Shard {shard.file} of {self.location.uri} is missing. Run the job that made it "
                    "again: it writes what is missing."
                )
            if info.size != shard.bytes:
                raise StorageError(
                    f"Shard {shard.file} of {self.location.uri} has {info.size} bytes; its manifest says "
                    f"{shard.bytes}: it is truncated or was changed. Delete it and run the job "
                    "that made it again."
                )

    def info(self, reports: tuple[str, ...] = ()) -> DatasetInfo:
        """What a stage may know of this dataset."""
        manifest = self.manifest
        return DatasetInfo(
            image_size=manifest.image_size,
            finding_names=manifest.finding_names,
            vocabulary=manifest.vocabulary,
            measurement_names=manifest.measurement_names,
            mask_names=manifest.mask_names,
            tensors=manifest.tensors,
            parents=manifest.parents,
            encoding=manifest.encoding,
            reports=reports,
            fingerprint=manifest.fingerprint,
        )


def open_dataset(uri: str) -> Dataset:
    """Opens an ingested dataset.

    Raises:
        StorageError: If there is no manifest, it has another format, or a shard is missing or truncated
            (by its size; `verify`).
    """
    location = resolve(uri)
    target = location / "manifest.json"
    if not target.exists():
        raise StorageError(
            f"There is no dataset at {location.uri}: manifest.json is missing. It is written when the job "
            "that makes the dataset ends: run python -m jobs ingest (refine, encode), or run it again."
        )
    try:
        manifest = DatasetManifest.model_validate(target.read_json())
    except ValueError:
        raise StorageError(
            f"{target.uri} is not the manifest of a dataset. Give --data the folder that an ingest wrote."
        ) from None
    if manifest.format != FORMAT:
        raise StorageError(
            f"The dataset at {location.uri} has format {manifest.format}; this version reads {FORMAT}. "
            "Ingest it again."
        )
    dataset = Dataset(location, manifest)
    dataset.verify()
    return dataset
