"""Rows of Parquet shards to `Batch`es, in plain numpy and torch: what every loader shares.

A row passes two steps: `decode` (in a data worker) turns encoded rows into `Columns`, plain arrays;
`collate` (in the training process) turns a slice of them into a `Batch`. n = rows, F = findings.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from counterray.config import Config
from counterray.data.confounding import ConfoundingConfig
from counterray.data.dataset import ROW_GROUP_ROWS, Dataset, DatasetInfo, TensorInfo
from counterray.data.labels import apply_uncertainty
from counterray.data.study import ATTRIBUTES, Batch
from counterray.storage import StorageError

logger = logging.getLogger(__name__)

Columns = dict[str, NDArray[Any]]
"""Arrays of n rows: ``image`` uint8 [n, H, W], ``attributes`` float32 [n, A], ``findings`` float32 and
``finding_mask`` bool [n, F], ``measurements`` float64 [n, M], ``mask.<name>`` uint8 [n, H, W] (0, 1, or
`NO_MASK`), ``report``, ``prompt``, ``tensor.<name>`` [n, ...], ``image_id``, ``patient_id``."""

NO_MASK = 255
"""Value throughout a mask that its study does not have."""

FOLDS = 2
"""Number of patient folds: judges of losses are trained on one, judges that score on the other."""


class LoaderConfig(Config):
    """How studies become batches."""

    uncertainty: Literal["ignore", "zeros", "ones", "keep"] = "ignore"
    """What an uncertain label counts as; see `labels.apply_uncertainty`."""
    fold: Literal["all", "a", "b"] = "all"
    """Patients to train on: all of the split, or one of two halves by a hash of the patient."""
    confounding: ConfoundingConfig | None = None
    """Studies that are left out so that a finding goes with an attribute, to train what an audit has to
    find."""
    order: Literal["studies", "patients"] = "studies"
    """What is shuffled within a block: studies, or patients, whose studies then stay together in a batch."""
    balance: float = Field(default=0.0, ge=0, le=1)
    """Long-tail sampling: each block's studies are drawn anew with a weight that grows as this power of the
    rarity of their rarest finding, ``(1 / prevalence) ** balance``; 0 takes every study once, 1 shows all
    findings about equally often."""
    block_studies: int = 1024
    """Studies that are read, decoded and shuffled together (4 row groups); fewer for large images."""

    @model_validator(mode="after")
    def _one_order(self) -> LoaderConfig:
        if self.balance and self.order == "patients":
            raise ValueError("balance draws single studies, so order must be studies, not patients")
        return self


def fold_of(patient_id: str) -> Literal["a", "b"]:
    """The fold of a patient, by a hash that does not depend on the data set."""
    digest = hashlib.sha256(f"fold:{patient_id}".encode()).digest()
    return "a" if digest[0] % FOLDS == 0 else "b"


def read_row_groups(dataset: Dataset, file: str, groups: list[int], columns: list[str] | None) -> pa.Table:
    """Reads row groups of one shard; all columns where ``None``.

    Raises:
        StorageError: If the shard cannot be read as Parquet.
    """
    location = dataset.location / file
    with (
        _readable(dataset, file),
        pq.ParquetFile(location.path, filesystem=location.filesystem, pre_buffer=True) as parquet,
    ):
        return parquet.read_row_groups(groups, columns=columns)


def row_group_rows(dataset: Dataset, file: str) -> list[int]:
    """Number of rows of each row group of a Parquet file of the dataset.

    Raises:
        StorageError: If the file cannot be read as Parquet.
    """
    location = dataset.location / file
    with _readable(dataset, file):
        groups = pq.read_metadata(location.path, filesystem=location.filesystem)
    return [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]


@contextmanager
def _readable(dataset: Dataset, file: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"Shard {file} of {dataset.location.uri} cannot be read ({type(error).__name__}): it is "
            "damaged or gone. Delete it and run the job that made it again."
        ) from error


def column_names(masks: tuple[str, ...], reports: bool, tensors: tuple[str, ...] = ()) -> list[str]:
    """Columns of a shard that `decode` needs."""
    names = ["image_id", "patient_id", "image", "findings", "measurements", *ATTRIBUTES]
    names += ["masks"] if masks else []
    names += ["report", "refined_report"] if reports else []
    return names + [f"tensor.{name}" for name in tensors]


def decode(
    table: pa.Table,
    info: DatasetInfo,
    config: LoaderConfig,
    *,
    masks: tuple[str, ...],
    reports: bool,
    tensors: tuple[str, ...] = (),
) -> Columns:
    """Decodes the rows of ``ARROW_SCHEMA`` that ``config`` does not leave out.

    Args:
        table: n rows with the columns of `column_names`.
        info: The dataset's vocabulary, findings and measurements.
        config: Uncertainty policy, fold and confounding.
        masks: Names of the masks to decode.
        reports: Whether to carry report texts and refined reports.
        tensors: Names of the tensors to carry.

    Returns:
        `Columns` of at most n rows, in the table's order.
    """
    if config.fold != "all":
        folds = [fold_of(patient) for patient in table.column("patient_id").to_pylist()]
        table = table.filter(pa.array([fold == config.fold for fold in folds], pa.bool_()))
    if config.confounding is not None:
        table = table.filter(pa.array(config.confounding.keeps(table), pa.bool_()))
    columns: Columns = {
        "image": _images(table.column("image").to_pylist(), info.image_size),
        "attributes": _attributes(table, info),
        "measurements": _measurements(table, info),
        "image_id": np.array(table.column("image_id").to_pylist(), dtype=object),
        "patient_id": np.array(table.column("patient_id").to_pylist(), dtype=object),
    }
    findings = table.column("findings").combine_chunks()
    values = [
        findings.field(name).cast(pa.float32()).to_numpy(zero_copy_only=False) for name in info.finding_names
    ]
    raw = np.stack(values, axis=1) if values else np.zeros((len(table), 0), np.float32)
    columns["findings"], columns["finding_mask"] = apply_uncertainty(raw, config.uncertainty)
    if masks:
        stored = [dict(row) for row in table.column("masks").to_pylist()]
        for name in masks:
            columns[f"mask.{name}"] = _masks([row.get(name) for row in stored], info.image_size)
    if reports:
        for name, column in (("report", "report"), ("prompt", "refined_report")):
            columns[name] = np.array([text or "" for text in table.column(column).to_pylist()], dtype=object)
    for name in tensors:
        columns[f"tensor.{name}"] = _tensor(table, name, info.tensors[name])
    return columns


def collate(columns: Mapping[str, NDArray[Any]], info: DatasetInfo) -> Batch:
    """Turns n decoded rows into a `Batch` of n, with copies: Ray's blocks are read-only."""
    attributes = torch.from_numpy(np.array(columns["attributes"]))
    measurements = torch.from_numpy(np.array(columns["measurements"]))
    return Batch(
        image=torch.from_numpy(np.array(columns["image"])).unsqueeze(1).float() / 127.5 - 1.0,
        attributes={name: attributes[:, column] for column, name in enumerate(ATTRIBUTES)},
        findings=torch.from_numpy(np.array(columns["findings"])),
        finding_mask=torch.from_numpy(np.array(columns["finding_mask"])),
        finding_names=info.finding_names,
        measurements={name: measurements[:, column] for column, name in enumerate(info.measurement_names)},
        masks={
            name.removeprefix("mask."): _mask_tensor(values)
            for name, values in columns.items()
            if name.startswith("mask.")
        },
        reports=tuple(columns["report"].tolist()) if "report" in columns else (),
        prompts=tuple(columns["prompt"].tolist()) if "prompt" in columns else (),
        tensors={
            name.removeprefix("tensor."): torch.from_numpy(np.array(values)).float()
            for name, values in columns.items()
            if name.startswith("tensor.")
        },
        image_ids=tuple(columns["image_id"].tolist()),
        patient_ids=tuple(columns["patient_id"].tolist()),
    )


def read_batches(
    dataset: Dataset,
    split: str,
    *,
    batch_size: int,
    config: LoaderConfig | None = None,
    masks: tuple[str, ...] = (),
    reports: bool = False,
    tensors: tuple[str, ...] = (),
) -> Iterator[Batch]:
    """Batches of a split in stored order, in this process and without Ray; the last may be smaller."""
    config = config or LoaderConfig()
    dataset.require_split(split)
    info = dataset.info()
    if config.confounding is not None:
        config.confounding.require(info)
    parts = (
        decode(
            read_row_groups(dataset, shard.file, [group], column_names(masks, reports, tensors)),
            info,
            config,
            masks=masks,
            reports=reports,
            tensors=tensors,
        )
        for shard in dataset.manifest.shards[split]
        for group in range(-(-shard.rows // ROW_GROUP_ROWS))
    )
    for columns in rebatch(parts, batch_size):
        yield collate(columns, info)


def rebatch(parts: Iterable[Columns], batch_size: int) -> Iterator[Columns]:
    """Cuts and joins ``parts`` into ``batch_size`` rows each; the last may be smaller."""
    held: Columns = {}
    for part in parts:
        held = {name: np.concatenate([held[name], rows]) for name, rows in part.items()} if held else part
        whole = len(held["image"]) // batch_size * batch_size
        for start in range(0, whole, batch_size):
            yield {name: rows[start : start + batch_size] for name, rows in held.items()}
        held = {name: rows[whole:] for name, rows in held.items()}
    if held and len(held["image"]):
        yield held


def _images(encoded: list[bytes], size: int) -> NDArray[np.uint8]:
    images = np.empty((len(encoded), size, size), np.uint8)
    for row, data in enumerate(encoded):
        with Image.open(io.BytesIO(data)) as picture:
            images[row] = np.asarray(picture)
    return images


def _masks(encoded: list[bytes | None], size: int) -> NDArray[np.uint8]:
    masks = np.full((len(encoded), size, size), NO_MASK, np.uint8)
    for row, data in enumerate(encoded):
        if data is not None:
            with Image.open(io.BytesIO(data)) as picture:
                masks[row] = np.asarray(picture) > 0
    return masks


def _mask_tensor(values: NDArray[Any]) -> torch.Tensor:
    mask = torch.from_numpy(np.array(values)).unsqueeze(1).float()
    return torch.where(mask == NO_MASK, torch.nan, mask)


def _tensor(table: pa.Table, name: str, info: TensorInfo) -> NDArray[Any]:
    rows = table.column(f"tensor.{name}").to_pylist()
    return np.frombuffer(b"".join(rows), dtype=info.dtype).reshape(len(rows), *info.shape)


def _attributes(table: pa.Table, info: DatasetInfo) -> NDArray[np.float32]:
    result = np.full((len(table), len(ATTRIBUTES)), np.nan, np.float32)
    for column, (name, kind) in enumerate(ATTRIBUTES.items()):
        values = table.column(name).to_pylist()
        if kind == "continuous":
            result[:, column] = [np.nan if value is None else value for value in values]
        else:
            codes = {value: code for code, value in enumerate(info.vocabulary.get(name, ()))}
            result[:, column] = [codes.get(value, np.nan) for value in values]
    return result


def _measurements(table: pa.Table, info: DatasetInfo) -> NDArray[np.float64]:
    result = np.full((len(table), len(info.measurement_names)), np.nan, np.float64)
    position = {name: column for column, name in enumerate(info.measurement_names)}
    for row, pairs in enumerate(table.column("measurements").to_pylist()):
        for name, value in pairs:
            if name in position:
                result[row, position[name]] = value
    return result


def read_reports(dataset: Dataset, split: str, *, limit: int) -> tuple[str, ...]:
    """The first ``limit`` report texts of a split, in stored order; for learning a vocabulary."""
    texts: list[str] = []
    for shard in dataset.manifest.shards.get(split, ()):
        for group in range(-(-shard.rows // ROW_GROUP_ROWS)):
            table = read_row_groups(dataset, shard.file, [group], ["report"])
            texts += [text for text in table.column("report").to_pylist() if text]
            if len(texts) >= limit:
                return tuple(texts[:limit])
    return tuple(texts)
