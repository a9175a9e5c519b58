"""PadChest: the official label file and its 16-bit PNG files, in numbered folders or flat.

Reference: Bustos et al., "PadChest", 2020, https://arxiv.org/abs/1901.07441
"""

from __future__ import annotations

import ast
import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Literal

import pandas as pd

from counterray.data.labels import label_map
from counterray.data.pixels import Rejection
from counterray.data.sources.base import Listing, Source, record_table, rows_of, shared
from counterray.data.sources.files import IMAGE_SUFFIXES, SourceError, find_file, list_files, read_csv
from counterray.data.sources.values import or_none, parse_sex, plausible_ages, years_between
from counterray.storage import Location

_COLUMNS = (
    "ImageID",
    "StudyDate_DICOM",
    "PatientID",
    "PatientBirth",
    "PatientSex_DICOM",
    "Projection",
    "Manufacturer_DICOM",
    "Report",
    "Labels",
)


class PadChest(Source):
    """``PADCHEST_chest_x_ray_images_labels_160K_*.csv`` (plain or .gz), images anywhere below the root.

    Age is the year of the study less the year of birth. Reports are the release's own, in Spanish.
    """

    name: Literal["padchest"] = "padchest"
    """The source's name."""

    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sex": ("female", "male"),
        "view": ("PA", "AP", "AP_horizontal", "L"),
    }

    def listing(self, root: Location) -> Listing:
        """Joins the label file with the images that are there; see `Source.listing`."""
        files = list_files(root)
        labels_path = find_file(root, files, "PADCHEST_chest_x_ray_images_labels*.csv")
        table = read_csv(root, labels_path, _COLUMNS)
        images = {posixpath.basename(path): path for path in files if path.lower().endswith(IMAGE_SUFFIXES)}
        found = table[table["ImageID"].isin(list(images))]
        if found.empty:
            raise SourceError(f"None of the {len(table)} images in {labels_path} is below {root.uri}.")
        mapping = label_map(self.name)
        read = shared(_labels, found["Labels"])
        is_list = [row is not None for row in read]
        present, labels = found[is_list], [row for row in read if row is not None]
        ages, implausible = plausible_ages(_ages(present))
        paths = [images[name] for name in present["ImageID"]]
        records = record_table(
            {
                "image_id": [posixpath.splitext(name)[0] for name in present["ImageID"]],
                "patient_id": present["PatientID"],
                "view": map(_stated, present["Projection"]),
                "sex": map(parse_sex, present["PatientSex_DICOM"]),
                "age": ages,
                "scanner": map(_stated, present["Manufacturer_DICOM"]),
                "report": map(or_none, present["Report"]),
                "findings": shared(mapping.findings, labels),
                "path": paths,
                "bytes": [files[path] for path in paths],
            }
        )
        return Listing(
            records=records,
            rejected=tuple(
                Rejection(posixpath.splitext(name)[0], "label_missing", "Labels is no list")
                for name, is_read in zip(found["ImageID"], is_list, strict=True)
                if not is_read
            ),
            notes={"not_present": len(table) - len(found), "implausible_age": implausible},
            unknown_labels=Counter(label for row in labels for label in mapping.unknown(row)),
        )


def _labels(text: str) -> tuple[str, ...] | None:
    """Labels from the text of a Python list, ``None`` where it is none.

    An empty field says as little as ``unchanged``.
    """
    if not text.strip():
        return ("unchanged",)
    try:
        labels = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return None
    return tuple(label.strip() for label in labels if label.strip())


def _ages(table: pd.DataFrame) -> list[str]:
    return [years_between(row["PatientBirth"], row["StudyDate_DICOM"][:4]) for row in rows_of(table)]


def _stated(text: str) -> str | None:
    return None if text in ("", "None", "UNK") else text
