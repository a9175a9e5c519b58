"""Files of a source, found by name and read as text; what is wrong with one is told by its place."""

from __future__ import annotations

import csv
import gzip
import io
import posixpath
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import pandas as pd
import pyarrow as pa

from counterray.config import ConfigError
from counterray.data.pixels import Rejected
from counterray.storage import Location, MissingError

Value = TypeVar("Value")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

_GZIP_MAGIC = b"\x1f\x8b"


class SourceError(ConfigError):
    """A source is not as its settings say; the message tells what was looked for, and where."""


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
    if root.is_file():
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
