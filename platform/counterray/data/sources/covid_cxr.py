"""COVID-19 Image Data Collection: ``metadata.csv``, images, expert severity scores, lung masks, notes.

Reference: Cohen et al., "COVID-19 Image Data Collection", 2020, https://arxiv.org/abs/2006.11988
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import pandas as pd

from counterray.data.labels import label_map
from counterray.data.pixels import Rejection
from counterray.data.sources.base import Listing, Source, record_table, rows_of
from counterray.data.sources.files import (
    find_file,
    find_optional,
    list_files,
    parse_column,
    read_csv,
    require_columns,
)
from counterray.data.sources.values import or_none, parse_sex, plausible_ages
from counterray.storage import Location

# Our names to those of the official file and of its re-packaged form.
_OFFICIAL = {
    "patient": "patientid",
    "labels": "finding",
    "notes": "clinical_notes",
    "site": "location",
    "original": "filename",
    "sex": "sex",
    "age": "age",
    "view": "view",
}
_REPACKAGED = {
    **_OFFICIAL,
    "patient": "patient_id",
    "labels": "labels",
    "notes": "report",
    "original": "orig_filename",
}

# Each severity's column and the top of its scale (header of the annotation file).
_SEVERITIES = {"severity_extent": ("geographic_mean", 8.0), "severity_opacity": ("opacity_mean", 6.0)}

_MASK_COLUMNS = {"lungs": "lung_mask", "artefacts": "artefact_mask"}


class CovidCxr(Source):
    """The official folder (``metadata.csv``, ``images/``, ``annotations/``), or a re-packaged one.

    A re-packaged ``metadata.csv`` names an image's file in ``path`` and its masks in ``lung_mask`` and
    ``artefact_mask``. Severity scores become measurements in [0, 1]; clinical notes are the report. Computed
    tomography is left out and counted.
    """

    name: Literal["covid_cxr"] = "covid_cxr"
    """The source's name."""

    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sex": ("female", "male"),
        "view": ("PA", "AP", "AP Supine"),
    }

    def listing(self, root: Location) -> Listing:
        """Joins metadata, images, masks and scores; see `Source.listing`."""
        files = list_files(root)
        table, notes = _metadata(root, files)
        is_here = table["path"].isin(list(files))
        present = table[is_here]
        mapping = label_map(self.name)
        labels = [_labels(text) for text in present["labels"]]
        ages, notes["implausible_age"] = plausible_ages(present["age"].tolist())
        records = record_table(
            {
                "image_id": present["image_id"],
                "patient_id": present["patient"],
                "view": map(or_none, present["view"]),
                "sex": map(parse_sex, present["sex"]),
                "age": ages,
                "site": map(or_none, present["site"]),
                "report": map(or_none, present["notes"]),
                "findings": map(mapping.findings, labels),
                "measurements": _severities(root, files, present["original"]),
                "mask_paths": _masks(present),
                "path": present["path"],
                "bytes": [files[path] for path in present["path"]],
            }
        )
        return Listing(
            records=records,
            rejected=tuple(
                Rejection(image_id, "missing_image", "listed in metadata.csv")
                for image_id in table["image_id"][~is_here]
            ),
            notes=notes,
            unknown_labels=Counter(label for row in labels for label in mapping.unknown(row)),
        )


def _metadata(root: Location, files: Mapping[str, int]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The metadata under our column names, with ``image_id`` and ``path``; and what was left out."""
    path = find_file(root, files, "metadata.csv")
    table = read_csv(root, path, ())
    names = _OFFICIAL if "patientid" in table.columns else _REPACKAGED
    require_columns(table, list(names.values()), f"{root.uri}/{path}")
    notes = {}
    if "modality" in table.columns:
        is_radiograph = table["modality"] == "X-ray"
        notes["not_radiograph"] = int((~is_radiograph).sum())
        table = table[is_radiograph]
    folder = posixpath.dirname(path)
    if "path" in table.columns:
        paths = [posixpath.join(folder, name) for name in table["path"]]
    else:
        paths = [posixpath.join(folder, "images", name) for name in table["filename"]]
    ours = pd.DataFrame({ours: table[theirs] for ours, theirs in names.items()})
    for column in _MASK_COLUMNS.values():
        masks = table[column] if column in table.columns else [""] * len(table)
        ours[column] = [posixpath.join(folder, name) if name else "" for name in masks]
    ours["path"] = paths
    ours["image_id"] = [posixpath.splitext(posixpath.basename(path))[0] for path in paths]
    # The official file lists an image again for a second source; the first row stands.
    unique = ours.drop_duplicates("path")
    notes["repeated_row"] = len(ours) - len(unique)
    return unique, notes


def _labels(text: str) -> list[str]:
    """``COVID-19|ARDS``, ``COVID-19, ARDS`` or the last step of ``Pneumonia/Viral/COVID-19``."""
    return [part.strip().split("/")[-1] for part in re.split(r"[|,]", text) if part.strip()]


def _severities(root: Location, files: Mapping[str, int], names: Iterable[str]) -> list[dict[str, float]]:
    path = find_optional(files, "covid-severity-scores.csv")
    if path is None:
        return [{} for _ in names]
    columns = [column for column, _ in _SEVERITIES.values()]
    table = read_csv(root, path, ["filename", *columns], comment="##")
    scores: dict[str, dict[str, float]] = {}
    for name, (column, top) in _SEVERITIES.items():
        read = parse_column(table, column, float, place=f"{root.uri}/{path}", expected="number")
        for file, value in zip(table["filename"], read, strict=True):
            scores.setdefault(file, {})[name] = value / top
    return [scores.get(name, {}) for name in names]


def _masks(table: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {name: row[column] for name, column in _MASK_COLUMNS.items() if row[column]} for row in rows_of(table)
    ]
