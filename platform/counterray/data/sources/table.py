"""Any table, CSV or Parquet, whose columns a configuration names."""

from __future__ import annotations

import posixpath
from collections import Counter
from typing import ClassVar, Literal

import pandas as pd
from pydantic import Field

from counterray.config import Config
from counterray.data.labels import FINDINGS, LabelMap, label_map, label_maps
from counterray.data.pixels import Rejection
from counterray.data.sources.base import Listing, Source, record_table, rows_of, shared
from counterray.data.sources.files import SourceError, list_files, parse_column, read_csv, read_parquet
from counterray.data.sources.values import or_none, parse_positive, parse_sex, plausible_ages
from counterray.storage import Location

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


class TableColumns(Config):
    """Which column holds what; only ``path`` and ``patient_id`` are needed."""

    path: str = "path"
    """Path of the image file, relative to the table's folder."""
    patient_id: str = "patient_id"
    """Patient: images of one patient never fall into different splits."""
    image_id: str | None = None
    """Unique name of the image; ``None`` takes the path."""
    split: str | None = None
    """The table's own split, used with ``splits.method=official``, in any usual words."""
    view: str | None = None
    """View, such as PA."""
    sex: str | None = None
    """F, M, Female or Male."""
    age: str | None = None
    """Age [years, or DICOM's 058Y and 013M]."""
    race: str | None = None
    """Race in the table's own words."""
    group: str | None = None
    """Protected group."""
    site: str | None = None
    """Hospital or collection."""
    scanner: str | None = None
    """Device."""
    pixel_spacing: str | None = None
    """Edge of a pixel of the file [mm]."""
    report: str | None = None
    """Free text."""
    labels: str | None = None
    """A list of labels, which ``label_map`` reads."""
    findings: dict[str, str] = Field(default_factory=dict)
    """Finding of the vocabulary to a column with 1, 0, -1 (uncertain) or nothing."""
    measurements: dict[str, str] = Field(default_factory=dict)
    """Name of a measurement to its column of numbers."""
    masks: dict[str, str] = Field(default_factory=dict)
    """Name of a mask to the column with its file's path."""


class Table(Source):
    """A CSV or Parquet file below the root, and image files (PNG, JPEG, TIFF, DICOM) that it names."""

    name: Literal["table"] = "table"
    """The source's name."""
    file: str
    """The table, relative to the root: ``.csv``, ``.csv.gz`` or ``.parquet``."""
    columns: TableColumns = TableColumns()
    """Which column holds what."""
    label_map: str | None = None
    """Source whose map reads ``columns.labels``, such as ``nih_cxr14``."""
    label_separator: str = "|"
    """What stands between the labels of a list."""

    official_split: ClassVar[str | None] = "the column that source.columns.split names"

    def listing(self, root: Location) -> Listing:
        """Reads the table and looks for the files that it names; see `Source.listing`."""
        files = list_files(root)
        table = self._read(root)
        folder = posixpath.dirname(self.file)
        columns = self.columns
        paths = pd.Series([posixpath.join(folder, path) for path in table[columns.path]], index=table.index)
        is_here = paths.isin(list(files))
        is_named = table[columns.patient_id].str.strip() != ""
        names = table[columns.image_id] if columns.image_id else table[columns.path]
        present, paths = table[is_here & is_named], paths[is_here & is_named]
        ages, implausible = plausible_ages(self._texts(present, columns.age))
        findings, unknown = self._findings(present)
        plain = {
            name: map(or_none, self._texts(present, getattr(columns, name)))
            for name in ("view", "race", "group", "site", "scanner", "report")
        }
        records = record_table(
            {
                "image_id": names[is_here & is_named],
                "patient_id": present[columns.patient_id],
                "split": self._splits(present),
                "sex": map(parse_sex, self._texts(present, columns.sex)),
                "age": ages,
                "pixel_spacing": map(parse_positive, self._texts(present, columns.pixel_spacing)),
                "findings": findings,
                "measurements": self._measurements(present),
                "mask_paths": self._masks(present, folder),
                "path": paths,
                "bytes": [files[path] for path in paths],
                **plain,
            }
        )
        rejected = [Rejection(name, "missing_image", "listed in the table") for name in names[~is_here]]
        rejected += [Rejection(name, "label_missing", "no patient_id") for name in names[is_here & ~is_named]]
        return Listing(
            records=records,
            rejected=tuple(rejected),
            notes={"implausible_age": implausible},
            unknown_labels=unknown,
        )

    def _read(self, root: Location) -> pd.DataFrame:
        columns = self.columns
        if columns.labels is not None and self.label_map is None:
            raise SourceError("source.columns.labels is set; source.label_map must say which map reads it.")
        if self.label_map is not None and self.label_map not in label_maps():
            raise SourceError(
                f"source.label_map is {self.label_map!r}; known maps are {', '.join(label_maps())}."
            )
        outside = sorted(set(columns.findings) - set(FINDINGS))
        if outside:
            raise SourceError(
                f"source.columns.findings names {', '.join(outside)}; findings are {', '.join(FINDINGS)}."
            )
        if not (root / self.file).exists():
            raise SourceError(f"There is no table {self.file} below {root.uri} (source.file).")
        plain = [name for name in columns.model_dump().values() if isinstance(name, str)]
        grouped = [*columns.findings.values(), *columns.measurements.values(), *columns.masks.values()]
        read = read_parquet if self.file.endswith(".parquet") else read_csv
        return read(root, self.file, [*plain, *grouped])

    def _texts(self, table: pd.DataFrame, column: str | None) -> list[str]:
        return [""] * len(table) if column is None else table[column].tolist()

    def _splits(self, table: pd.DataFrame) -> list[str | None]:
        texts = [text.strip().lower() for text in self._texts(table, self.columns.split)]
        unknown = sorted({text for text in texts if text and text not in _SPLITS})
        if unknown:
            raise SourceError(
                f"The column {self.columns.split!r} holds splits {', '.join(map(repr, unknown))}; "
                f"known are {', '.join(_SPLITS)}."
            )
        return [_SPLITS.get(text) for text in texts]

    def _findings(self, table: pd.DataFrame) -> tuple[list[dict[str, int]], Counter[str]]:
        unknown: Counter[str] = Counter()
        rows: list[dict[str, int]] = [{} for _ in range(len(table))]
        if self.columns.labels is not None and self.label_map is not None:
            mapping = label_map(self.label_map)
            labels = shared(self._split_labels, table[self.columns.labels])
            unknown.update(label for row in labels for label in mapping.unknown(row))
            rows = [dict(row) for row in shared(mapping.findings, labels)]
        if self.columns.findings:
            direct = LabelMap(
                reference="source.columns.findings",
                unmentioned="unknown",
                no_finding="no_finding",
                labels={name: (name,) for name in self.columns.findings if name != "no_finding"},
            )
            named = pd.DataFrame({name: table[column] for name, column in self.columns.findings.items()})
            for row, values in zip(rows, direct.table_findings(named), strict=True):
                row.update(values)
        return rows, unknown

    def _split_labels(self, text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(self.label_separator) if part.strip())

    def _measurements(self, table: pd.DataFrame) -> list[dict[str, float]]:
        columns = self.columns.measurements
        read = {
            name: parse_column(
                table,
                column,
                lambda text: float(text) if text.strip() else None,
                place=f"{self.file} (source.columns.measurements.{name})",
                expected="number",
            )
            for name, column in columns.items()
        }
        return [
            {name: value for name, values in read.items() if (value := values[row]) is not None}
            for row in range(len(table))
        ]

    def _masks(self, table: pd.DataFrame, folder: str) -> list[dict[str, str]]:
        return [
            {
                name: posixpath.join(folder, row[column])
                for name, column in self.columns.masks.items()
                if row[column].strip()
            }
            for row in rows_of(table)
        ]
