"""A chunk of records becomes Parquet shards and an index: what one worker does in an ingest."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from counterray.data.dataset import ROW_GROUP_ROWS, Shard
from counterray.data.pixels import Fit, Rejection, decode_grey
from counterray.data.sources.base import Source
from counterray.data.splits import SplitConfig, hash_split
from counterray.data.study import ARROW_SCHEMA, Study
from counterray.storage import Location

_INDEXED = ("image_id", "patient_id", "split", "view", "sex", "age", "race", "group", "site", "scanner")

INDEX_SCHEMA = pa.schema(
    [
        *(pa.field(name, ARROW_SCHEMA.field(name).type) for name in (*_INDEXED, "findings")),
        pa.field("measurement_names", pa.list_(pa.string())),
        pa.field("mask_names", pa.list_(pa.string())),
        pa.field("pixels", pa.binary(32)),
        pa.field("digest", pa.binary(32)),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""A row for each record of a chunk: a study's checksums and countable fields, or why it was set aside.

``pixels`` is the SHA-256 of the stored pixels, ``digest`` that of the whole study.
"""


@dataclass(frozen=True)
class Chunk:
    """Some records that are written together.

    Attributes:
        name: Number and checksum of the records and of all settings that change what is written.
        records: Rows of ``RECORD_SCHEMA`` with ``split`` set, as an Arrow IPC stream.
    """

    name: str
    records: bytes


@dataclass(frozen=True)
class Index:
    """What was written of a chunk.

    Attributes:
        rows: Rows of `INDEX_SCHEMA`, in the order of the records.
        shards: Split to the shard that holds its studies.
    """

    rows: pa.Table
    shards: Mapping[str, Shard]


def pack(records: pa.Table) -> bytes:
    """Records as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, records.schema) as writer:
        writer.write_table(records)
    return bytes(sink.getvalue())


def write_chunk(
    chunk: Chunk, root: Location, out: Location, *, source: Source, size: int, fit: Fit, splits: SplitConfig
) -> dict[str, int]:
    """Reads a chunk's studies and writes their shards, then, last, the index that says it is done.

    Args:
        chunk: The records.
        root: The source's root.
        out: The dataset's folder.
        source: Reads the records.
        size: Edge of the square images [px].
        fit: How a rectangle becomes a square.
        splits: Divides patients that only an image file names.

    Returns:
        Numbers of ``studies`` and of ``rejected`` images.
    """
    records = pa.ipc.open_stream(chunk.records).read_all().to_pylist()
    studies: dict[str, list[dict[str, Any]]] = {}
    rows = []
    for item in source.read(root, records, size=size, fit=fit):
        if isinstance(item, Rejection):
            rows.append({"image_id": item.image_id, "reason": item.reason, "detail": item.detail})
        else:
            study = replace(item, split=item.split or hash_split(item.patient_id, splits))
            studies.setdefault(study.split, []).append(study.row())
            rows.append(index_row(study))
    shards = {
        split: write_shard(out, split, chunk.name, pa.Table.from_pylist(group, ARROW_SCHEMA))
        for split, group in sorted(studies.items())
    }
    write_index(out, chunk.name, Index(pa.Table.from_pylist(rows, INDEX_SCHEMA), shards))
    written = sum(shard.rows for shard in shards.values())
    return {"studies": written, "rejected": len(rows) - written}


def write_shard(out: Location, split: str, name: str, studies: pa.Table) -> Shard:
    """Writes one Parquet shard whole or not at all."""
    buffer = io.BytesIO()
    # A dictionary of unique images is their copy: only columns with few values get one.
    columns = [field.name for field in ARROW_SCHEMA if field.name in (*_INDEXED[2:], "source")]
    pq.write_table(studies, buffer, compression="zstd", row_group_size=ROW_GROUP_ROWS, use_dictionary=columns)
    data = buffer.getvalue()
    file = f"{split}/part-{name}.parquet"
    (out / file).write_bytes(data)
    return Shard(file=file, rows=len(studies), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def index_file(name: str) -> str:
    """Path of the index of the chunk ``name``, relative to the dataset's folder."""
    return f"index/{name}.parquet"


def write_index(out: Location, name: str, index: Index) -> None:
    """Writes a chunk's index."""
    shards = json.dumps({split: shard.model_dump() for split, shard in index.shards.items()})
    buffer = io.BytesIO()
    pq.write_table(index.rows.replace_schema_metadata({"shards": shards}), buffer, compression="zstd")
    (out / index_file(name)).write_bytes(buffer.getvalue())


def read_index(out: Location, name: str) -> Index:
    """Reads a chunk's index."""
    table = pq.read_table(io.BytesIO((out / index_file(name)).read_bytes()))
    shards = json.loads(table.schema.metadata[b"shards"])
    return Index(
        table.cast(INDEX_SCHEMA), {split: Shard.model_validate(shard) for split, shard in shards.items()}
    )


def set_aside(out: Location, name: str, index: Index, duplicates: Sequence[str]) -> Index:
    """Moves duplicates of a written chunk from its shards into its quarantine rows.

    Args:
        out: The dataset's folder.
        name: The chunk's name.
        index: Its index.
        duplicates: ``image_id`` of the images to set aside.

    Returns:
        The chunk's new index.
    """
    unwanted = pa.array(duplicates, pa.string())
    shards = {}
    for split, shard in index.shards.items():
        table = pq.read_table(io.BytesIO((out / shard.file).read_bytes()), schema=ARROW_SCHEMA)
        keep = pc.invert(pc.is_in(table["image_id"], unwanted))
        kept = table.filter(keep)
        if len(kept) == len(table):
            shards[split] = shard
        elif len(kept):
            shards[split] = write_shard(out, split, name, kept)
    marked = set(duplicates)
    rows = [
        {
            "image_id": row["image_id"],
            "pixels": row["pixels"],
            "reason": "duplicate",
            "detail": "the same pixels as another image",
        }
        if row["image_id"] in marked
        else row
        for row in index.rows.to_pylist()
    ]
    changed = Index(pa.Table.from_pylist(rows, INDEX_SCHEMA), shards)
    write_index(out, name, changed)
    return changed


def fingerprint(digests: Iterable[bytes]) -> str:
    """Checksum of a multiset of studies: the sum of their digests modulo 2**256, in hexadecimal.

    A sum does not depend on the order, and unlike an exclusive or it does not lose what occurs twice.

    Reference: Bellare and Micciancio, "A new paradigm for collision-free hashing: incrementality at reduced
    cost" (AdHash), 1997, https://doi.org/10.1007/3-540-69053-0_13
    """
    total = sum(int.from_bytes(digest, "big") for digest in digests) % 2**256
    return f"{total:064x}"


def study_digest(study: Study) -> tuple[bytes, bytes]:
    """SHA-256 of a study's pixels, and of all its fields.

    Images and masks count by their pixels, not by their PNG files, whose bytes depend on the version of the
    compressor.
    """
    row = study.row()
    image = _pixel_digest(row.pop("image"))
    row["masks"] = [(name, _pixel_digest(mask).hex()) for name, mask in row["masks"]]
    for name in ("age", "pixel_spacing"):
        row[name] = None if row[name] is None else float(np.float32(row[name]))
    row["measurements"] = [(name, float(value)) for name, value in row["measurements"]]
    text = json.dumps(row, sort_keys=True, ensure_ascii=True)
    return image, hashlib.sha256(image + text.encode()).digest()


def _pixel_digest(png: bytes) -> bytes:
    values = decode_grey(png)
    return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).digest()


def index_row(study: Study) -> dict[str, Any]:
    """A study's row of `INDEX_SCHEMA`."""
    image, digest = study_digest(study)
    row = study.row()
    return {
        **{name: row[name] for name in (*_INDEXED, "findings")},
        "measurement_names": sorted(study.measurements),
        "mask_names": sorted(study.masks),
        "pixels": image,
        "digest": digest,
    }
