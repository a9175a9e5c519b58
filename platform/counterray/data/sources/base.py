"""What every source has in common: a cheap listing of records in the driver, and studies in the workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from counterray.config import Config
from counterray.data import pixels
from counterray.data.dicom import decode_any
from counterray.data.labels import FINDINGS
from counterray.data.pixels import Fit, Rejected, Rejection, geometry
from counterray.data.sources.files import read_file
from counterray.data.study import ARROW_SCHEMA, Study
from counterray.storage import Location

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

UNASSIGNED = ""
"""Patient, and so split, of a record whose image file alone says whose it is."""

_PIXEL_FIELDS = {"image", "height", "width", "masks", "source", "refined_report"}

RECORD_SCHEMA = pa.schema(
    [
        *(item for item in ARROW_SCHEMA.remove_metadata() if item.name not in {*_PIXEL_FIELDS, "split"}),
        pa.field("split", pa.string()),
        pa.field("field_width", pa.float64()),
        pa.field("path", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("index", pa.int64()),
        pa.field("mask_paths", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("report_path", pa.string()),
    ]
)
"""One image before its pixels are read: the fields of a study, and where its files are below the root.

``pixel_spacing`` is that of the file, and ``field_width`` the width of the imaged field [mm] where that is
known instead; ``split`` is the source's own, or null; ``index`` numbers what a source
draws itself.
"""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source found below a root, without a pixel.

    Attributes:
        records: Rows of `RECORD_SCHEMA`, one for each image to be read.
        rejected: Images that are set aside already.
        notes: Named counts, such as ``not_present``: rows of a label file without an image.
        unknown_labels: Labels that the source's map does not know, with the number of images.
        reports: Report-only rows (image_id, patient_id, report, findings), or ``None``.
    """

    records: pa.Table
    rejected: tuple[Rejection, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    unknown_labels: Mapping[str, int] = field(default_factory=dict)
    reports: pa.Table | None = None


class Source(Config, ABC):
    """Where studies come from. A source is its own configuration, with ``name`` as the discriminator."""

    name: str
    """The source's name."""

    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]] = {"sex": ("female", "male")}
    """Categorical attributes whose values the source fixes; the values of the others are those seen."""
    image_sizes: ClassVar[tuple[int, int]] = (32, 2048)
    """Smallest and largest edge of the square images that the source can give [px]."""
    official_split: ClassVar[str | None] = None
    """What holds the source's own split, or ``None`` where it has none."""

    @abstractmethod
    def listing(self, root: Location) -> Listing:
        """Lists the images below ``root``.

        Raises:
            SourceError: If the layout is not this source's.
        """

    def read(
        self, root: Location, records: Sequence[Mapping[str, Any]], *, size: int, fit: Fit
    ) -> Iterator[Study | Rejection]:
        """Reads the studies of some records; runs in a worker.

        Args:
            root: The source's root.
            records: Rows of `RECORD_SCHEMA` with ``split`` set.
            size: Edge of the square images [px].
            fit: How a rectangle becomes a square.

        Yields:
            For each record its study, or why there is none.
        """
        for record in records:
            try:
                yield self.study(root, record, size=size, fit=fit)
            except Rejected as rejection:
                yield Rejection(record["image_id"], rejection.reason, rejection.detail)

    def study(self, root: Location, record: Mapping[str, Any], *, size: int, fit: Fit) -> Study:
        """Reads one study from its image file.

        Raises:
            Rejected: If the image is to be set aside.
        """
        values = decode_any(read_file(root, record["path"]))
        return assemble(self.name, root, record, values, size=size, fit=fit)


def assemble(
    source: str,
    root: Location,
    record: Mapping[str, Any],
    values: npt.NDArray[np.float32],
    *,
    size: int,
    fit: Fit,
) -> Study:
    """Places a decoded image and its masks on the square and joins them with what the record says.

    Args:
        source: Name of the source.
        root: The source's root, for masks and reports.
        record: A row of `RECORD_SCHEMA`.
        values: ``[H, W]`` grey values in [0, 1].
        size: Edge of the square [px].
        fit: How a rectangle becomes a square.

    Raises:
        Rejected: If a mask is missing, unreadable or not of its image's size.
    """
    height, width = values.shape
    place = geometry(height, width, size, fit)
    masks = {}
    for name, path in record["mask_paths"]:
        mask = pixels.decode_mask(read_file(root, path))
        if mask.shape != (height, width):
            raise Rejected("unreadable", f"mask {name} is {mask.shape}, its image {(height, width)} pixels")
        masks[name] = pixels.encode(pixels.resize_mask(mask, place))
    spacing = record["pixel_spacing"]
    if spacing is None and record["field_width"] is not None:
        spacing = record["field_width"] / width
    report = record["report"]
    if record["report_path"] is not None:
        report = read_file(root, record["report_path"]).decode("utf-8", errors="replace")
    return Study(
        image=pixels.encode(pixels.resize(values, place)),
        height=size,
        width=size,
        source=source,
        pixel_spacing=None if spacing is None else spacing / place.scale,
        masks=masks,
        report=report,
        measurements=dict(record["measurements"]),
        **{name: record[name] for name in _PLAIN_FIELDS},
    )


_PLAIN_FIELDS = (
    "image_id",
    "patient_id",
    "split",
    "view",
    "sex",
    "age",
    "race",
    "group",
    "site",
    "scanner",
    "findings",
)


def record_table(columns: Mapping[str, Iterable[Any]]) -> pa.Table:
    """Rows of `RECORD_SCHEMA` from some of its columns; the others are null or empty.

    Args:
        columns: Column name to values. ``findings``, ``measurements`` and ``mask_paths`` hold mappings.
    """
    given = {name: list(values) for name, values in columns.items()}
    unknown = sorted(set(given) - set(RECORD_SCHEMA.names))
    if unknown:
        raise ValueError(f"No columns of a record: {', '.join(unknown)}.")
    count = len(given["image_id"])
    arrays = []
    for item in RECORD_SCHEMA:
        if item.name == "findings":
            values = given.get("findings") or [{}] * count
            children = [pa.array([row.get(name) for row in values], pa.int8()) for name in FINDINGS]
            arrays.append(pa.StructArray.from_arrays(children, fields=list(item.type)))
        elif pa.types.is_map(item.type):
            rows = given.get(item.name) or [{}] * count
            arrays.append(pa.array([sorted(row.items()) for row in rows], item.type))
        else:
            arrays.append(pa.array(given.get(item.name, [None] * count), item.type, from_pandas=True))
    return pa.table(arrays, schema=RECORD_SCHEMA)


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, each by its columns' names."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def shared(function: Callable[[Key], Value], keys: Iterable[Key]) -> list[Value]:
    """``function`` of every key, computed once for equal keys: a large file has few distinct label lists."""
    listed = list(keys)
    values = {key: function(key) for key in set(listed)}
    return [values[key] for key in listed]
