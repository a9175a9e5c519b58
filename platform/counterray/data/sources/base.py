"""What every source has in common: a cheap listing of records in the driver, and studies in the workers."""

from __future__ import annotations

import csv
import gzip
import io
import posixpath
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from counterray.config import Config, ConfigError
from counterray.data import pixels
from counterray.data.dicom import decode_any
from counterray.data.labels import FINDINGS
from counterray.data.pixels import Fit, Rejected, Rejection, geometry
from counterray.data.study import ARROW_SCHEMA, Study
from counterray.storage import Location, MissingError

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

UNASSIGNED = ""
"""Patient, and so split, of a record whose image file alone says whose it is."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

_GZIP_MAGIC = b"\x1f\x8b"

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


class SourceError(ConfigError):
    """A source is not as its settings say; the message tells what was looked for, and where."""


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


def read_file(root: Location, path: str) -> bytes:
    """A file below ``root``.

    Raises:
        Rejected: If there is none, or it is empty; storage that fails is an error, not a rejection.
    """
    try:
        data = (root / path).read_bytes()
    except MissingError as error:
        raise Rejected("missing_image", "the file has gone since it was listed") from error
    if not data:
        raise Rejected("unreadable", "the file is empty")
    return data


def is_file(location: Location) -> bool:
    """Whether a file, rather than a folder or nothing, is at ``location``."""
    try:
        location.size()
    except MissingError:
        return False
    return True


def list_files(root: Location, suffixes: Sequence[str] = ()) -> dict[str, int]:
    """All files below ``root``.

    Args:
        root: A folder.
        suffixes: Only files whose lower-case name ends so; empty for all.

    Returns:
        Path relative to ``root``, sorted, to size [bytes]; hidden files and folders are left out.

    Raises:
        SourceError: If there is no such folder.
    """
    if is_file(root):
        raise SourceError(f"--root {root.uri} is a file; give the folder that holds the source's files.")
    files = root.sizes()
    if not files and not root.exists():
        raise SourceError(f"There is no folder {root.uri}; --root names the source's top folder.")
    return {
        path: size
        for path, size in files.items()
        if (not suffixes or path.lower().endswith(tuple(suffixes)))
        and not any(part.startswith((".", "__MACOSX")) for part in path.split("/"))
    }


def find_file(root: Location, files: Mapping[str, int], *names: str) -> str:
    """The one file that has one of these names (``*`` stands for anything), plain or ``.gz``.

    Raises:
        SourceError: If there is none.
    """
    found = find_optional(files, *names)
    if found is None:
        raise SourceError(f"There is no file {' or '.join(names)} (plain or .gz) below {root.uri}.")
    return found


def find_optional(files: Mapping[str, int], *names: str) -> str | None:
    """As `find_file`, but ``None`` where there is none; the file nearest to the root wins."""
    for name in names:
        prefix, star, suffix = name.partition("*")
        matches = [
            path
            for path in files
            for base in [posixpath.basename(path).removesuffix(".gz")]
            if (base.startswith(prefix) and base.endswith(suffix) if star else base == name)
        ]
        if matches:
            return min(matches, key=lambda path: (path.count("/"), path))
    return None


def read_csv(root: Location, path: str, columns: Sequence[str], *, comment: str = "") -> pd.DataFrame:
    """Reads a CSV file as text, an empty field as an empty string.

    Args:
        root: The source's root.
        path: The file below it; ``.gz`` is unpacked.
        columns: Columns that must be there.
        comment: Lines that begin so are comments; empty for none.

    Raises:
        SourceError: If the file is damaged, empty, no UTF-8 or no table, or a column is missing; the message
            names the columns that are there.
    """
    place = f"{root.uri}/{path}"
    text = read_text(root, path)
    if comment:
        text = "\n".join(line for line in text.splitlines() if not line.startswith(comment))
    try:
        table = pd.read_csv(
            io.StringIO(text), dtype=str, keep_default_na=False, index_col=False, quoting=csv.QUOTE_MINIMAL
        ).fillna("")
    except pd.errors.EmptyDataError:
        raise SourceError(f"{place} is empty; it needs a line of column names. Fetch it again.") from None
    except pd.errors.ParserError as error:
        # The parser's message numbers lines and fields, and quotes none.
        raise SourceError(
            f"{place} is no CSV table: {str(error).strip()}. Mend that row, or fetch the file again; a field "
            "that holds a comma or a line break needs quotes on both sides."
        ) from None
    require_columns(table, columns, place)
    return table


def read_text(root: Location, path: str) -> str:
    """A text file below ``root``, unpacked if it is ``.gz``.

    Raises:
        SourceError: If it is damaged or no UTF-8.
    """
    place = f"{root.uri}/{path}"
    data = (root / path).read_bytes()
    try:
        return (gzip.decompress(data) if data[:2] == _GZIP_MAGIC else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{place} is no UTF-8 text (byte {error.start}). Convert it, such as "
            "with iconv -f latin1 -t utf-8."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(
            f"{place} cannot be unpacked ({type(error).__name__}). Fetch the file again."
        ) from None


def read_parquet(root: Location, path: str, columns: Sequence[str]) -> pd.DataFrame:
    """Reads a Parquet file as text, a null as an empty string.

    Raises:
        SourceError: If the file is damaged, or a column is missing.
    """
    place = f"{root.uri}/{path}"
    data = io.BytesIO((root / path).read_bytes())
    try:
        frame = pd.read_parquet(data)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{place} is no whole Parquet file ({type(error).__name__}). Write or fetch it again."
        ) from None
    require_columns(frame, columns, place)
    return frame.astype(object).where(frame.notna(), "").astype(str)


def parse_column(
    table: pd.DataFrame, column: str, parse: Callable[[str], Value], *, place: str, expected: str
) -> list[Value]:
    """Every text of a column, parsed.

    Args:
        table: Rows that still have the index under which the file was read.
        column: Name of the column.
        parse: Raises `ValueError` for a text that it cannot read.
        place: The file.
        expected: What the column holds, for the message.

    Raises:
        SourceError: Naming the file, the column and the row, never the text, which may identify a patient.
    """
    values = []
    for row, text in zip(table.index, table[column], strict=True):
        try:
            values.append(parse(text))
        except ValueError:
            raise SourceError(
                f"{place}: the column {column!r} holds no {expected} in row {row + 1} below the header. "
                "Mend or remove that row."
            ) from None
    return values


def require_columns(table: pd.DataFrame, columns: Sequence[str], place: str) -> None:
    """Raises a `SourceError` that names the columns missing from ``table`` and those that are there."""
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise SourceError(
            f"{place} has no column {', '.join(map(repr, missing))}; "
            f"its columns are {', '.join(map(repr, table.columns))}."
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


def read_excel(root: Location, path: str) -> pd.DataFrame:
    """Reads an Excel sheet as text, an empty cell as an empty string.

    Raises:
        SourceError: If the file is damaged.
    """
    data = io.BytesIO((root / path).read_bytes())
    try:
        return pd.read_excel(data, dtype=str, keep_default_na=False, engine="openpyxl").fillna("")
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise SourceError(
            f"{root.uri}/{path} is no whole Excel file ({type(error).__name__}). Fetch the file again."
        ) from None
