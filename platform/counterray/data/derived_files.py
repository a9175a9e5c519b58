"""A Parquet file beside a dataset's splits, such as ``reports.parquet``, derived by its row groups."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from counterray.data.batching import row_group_rows
from counterray.data.dataset import ROW_GROUP_ROWS, Dataset
from counterray.data.derived_parts import Done, Part
from counterray.storage import Location, StorageError
from counterray.storage_errors import translate

PARTS = "parts"
"""Folder of what is derived already, until the whole file is there."""


def file_parts(dataset: Dataset, file: str, fingerprint: str) -> list[Part]:
    """A part for every row group of ``file``; none where there is no such file.

    Args:
        dataset: The source.
        file: Parquet file in the dataset's folder.
        fingerprint: Of the derived dataset.
    """
    place = dataset.location / file
    if not place.exists():
        return []
    digest = hashlib.sha256(f"{fingerprint}{file}{place.sha256()}".encode()).hexdigest()[:12]
    parts = []
    for group, rows in enumerate(row_group_rows(dataset, file)):
        name = f"{_stem(file)}-{group:05d}-{digest}"
        if rows:
            parts.append(Part(name, file, (group,), rows, f"{PARTS}/{name}.parquet"))
    return parts


def read_joined(target: Location, file: str, parts: Sequence[Part]) -> list[Mapping[str, Any]] | None:
    """What the transforms of these very parts counted, if the file that is joined of them is there."""
    place = target / _index(file)
    if not place.exists():
        return None
    known = place.read_json()
    if known["parts"] != [part.name for part in parts]:
        return None
    if not (target / file).exists() or (target / file).size() != known["bytes"]:
        return None
    counts: list[Mapping[str, Any]] = known["counts"]
    return counts


def join(target: Location, file: str, parts: Sequence[Part], done: Done) -> list[Mapping[str, Any]]:
    """Writes ``file`` of its parts, holding one at a time; its index, written last, says that it is whole.

    Returns:
        What each part's transform counted.
    """
    counts = [done[part.name][1] for part in parts]
    with tempfile.TemporaryDirectory(prefix="counterray-") as scratch:
        joined = Path(scratch) / "joined.parquet"
        try:
            _write(joined, target, parts)
        except StorageError:
            raise
        except OSError as error:
            raise translate("write", str(joined), error) from error
        (target / file).write_file(joined)
        size = joined.stat().st_size
    names = [part.name for part in parts]
    (target / _index(file)).write_json({"parts": names, "bytes": size, "counts": counts})
    return counts


def _write(joined: Path, target: Location, parts: Sequence[Part]) -> None:
    schema = pq.read_schema(io.BytesIO((target / parts[0].file).read_bytes()))
    with pq.ParquetWriter(joined, schema, compression="zstd") as writer:
        for part in parts:
            table = pq.read_table(io.BytesIO((target / part.file).read_bytes()))
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)


def _stem(file: str) -> str:
    return file.removesuffix(".parquet")


def _index(file: str) -> str:
    return f"index/{_stem(file)}.json"
