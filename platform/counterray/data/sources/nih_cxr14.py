"""NIH ChestX-ray14: the official label file and image folders, or the Kaggle sample.

Reference: Wang et al., "ChestX-ray8", 2017, https://arxiv.org/abs/1705.02315
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Literal

import pandas as pd

from counterray.data.labels import label_map
from counterray.data.pixels import Rejection
from counterray.data.sources.base import Listing, Source, record_table, shared
from counterray.data.sources.files import (
    IMAGE_SUFFIXES,
    SourceError,
    find_file,
    find_optional,
    list_files,
    parse_column,
    read_csv,
    read_text,
)
from counterray.data.sources.values import parse_positive, parse_sex, plausible_ages
from counterray.data.splits import TRAIN_VALIDATION
from counterray.storage import Location

_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
# The official header names a pair in brackets, which its comma splits into two columns.
_SPACING_COLUMNS = ("OriginalImagePixelSpacing[x", "OriginalImagePixelSpacing_x")
_WIDTH_COLUMNS = ("OriginalImage[Width", "OriginalImageWidth")


class NihCxr14(Source):
    """``Data_Entry_2017*.csv`` (2017, 2020) or ``sample_labels.csv``, images anywhere below the root.

    Rows of the label file without an image are counted as ``not_present``: the label file lists 112,120
    images, and a root may hold some of the twelve archives only.
    """

    name: Literal["nih_cxr14"] = "nih_cxr14"
    """The source's name."""

    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]] = {"sex": ("female", "male"), "view": ("PA", "AP")}
    official_split: ClassVar[str | None] = "train_val_list.txt and test_list.txt"

    def listing(self, root: Location) -> Listing:
        """Joins the label file with the images that are there; see `Source.listing`."""
        files = list_files(root)
        labels_path = find_file(root, files, "Data_Entry_2017*.csv", "*sample_labels.csv")
        table = read_csv(root, labels_path, _COLUMNS)
        images = {posixpath.basename(path): path for path in files if path.lower().endswith(IMAGE_SUFFIXES)}
        present = table[table["Image Index"].isin(list(images))]
        if present.empty:
            raise SourceError(
                f"None of the {len(table)} images that {labels_path} lists is below {root.uri}, which holds "
                f"{len(images)} images. Unpack the image archives there, such as images/00000001_000.png."
            )
        known = set(table["Image Index"])
        mapping = label_map(self.name)
        labels = shared(lambda text: tuple(text.split("|")), present["Finding Labels"])
        ages, implausible = plausible_ages(present["Patient Age"].tolist())
        paths = [images[name] for name in present["Image Index"]]
        records = record_table(
            {
                "image_id": [posixpath.splitext(name)[0] for name in present["Image Index"]],
                "patient_id": parse_column(
                    present,
                    "Patient ID",
                    lambda text: f"{int(text):08d}",
                    place=f"{root.uri}/{labels_path}",
                    expected="whole number",
                ),
                "split": _official_split(root, files, present["Image Index"]),
                "view": [text or None for text in present["View Position"]],
                "sex": map(parse_sex, present["Patient Gender"]),
                "age": ages,
                "findings": shared(mapping.findings, labels),
                "field_width": _field_width(present),
                "path": paths,
                "bytes": [files[path] for path in paths],
            }
        )
        return Listing(
            records=records,
            rejected=tuple(
                Rejection(posixpath.splitext(name)[0], "label_missing", "no row in the label file")
                for name in images
                if name not in known
            ),
            notes={"not_present": len(table) - len(present), "implausible_age": implausible},
            unknown_labels=Counter(label for row in labels for label in mapping.unknown(row)),
        )


def _official_split(root: Location, files: Mapping[str, int], names: pd.Series[str]) -> list[str | None]:
    splits: dict[str, str] = {}
    for file, split in (("train_val_list.txt", TRAIN_VALIDATION), ("test_list.txt", "test")):
        path = find_optional(files, file)
        if path is not None:
            splits.update(dict.fromkeys(read_text(root, path).split(), split))
    return [splits.get(name) for name in names]


def _field_width(table: pd.DataFrame) -> list[float | None]:
    """Width of the imaged field [mm]: it survives resizing, which the released images went through."""
    spacing = next((name for name in _SPACING_COLUMNS if name in table.columns), None)
    width = next((name for name in _WIDTH_COLUMNS if name in table.columns), None)
    if spacing is None or width is None:
        return [None] * len(table)
    pairs = zip(map(parse_positive, table[spacing]), map(parse_positive, table[width]), strict=True)
    return [None if one is None or count is None else one * count for one, count in pairs]
