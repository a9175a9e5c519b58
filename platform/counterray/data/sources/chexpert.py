"""CheXpert: ``train.csv``, ``valid.csv`` and ``test.csv`` beside their image folders.

Reference: Irvin et al., "CheXpert", 2019, https://arxiv.org/abs/1901.07031
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import pandas as pd

from counterray.data.labels import label_map
from counterray.data.sources.base import Listing, Source, record_table, rows_of
from counterray.data.sources.files import (
    IMAGE_SUFFIXES,
    SourceError,
    find_optional,
    list_files,
    read_csv,
    read_excel,
    require_columns,
)
from counterray.data.sources.values import or_none, parse_sex, plausible_ages
from counterray.storage import Location

_SPLITS = {"train.csv": "train", "valid.csv": "validation", "test.csv": "test"}

_DEMOGRAPHICS = ("PATIENT", "PRIMARY_RACE")


class CheXpert(Source):
    """Any size of the release; race from the demographics table where that is below the root.

    The official split is the folder: train, valid, test. An age of 0 is the release's way of not knowing.
    """

    name: Literal["chexpert"] = "chexpert"
    """The source's name."""

    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sex": ("female", "male"),
        "view": ("PA", "AP"),
    }
    official_split: ClassVar[str | None] = "the folders train, valid and test"

    def listing(self, root: Location) -> Listing:
        """Joins the label files with the images that are there; see `Source.listing`."""
        files = list_files(root)
        table = _labels(root, files)
        images = {_tail(path): path for path in files if path.lower().endswith(IMAGE_SUFFIXES)}
        tails = table["Path"].map(_tail)
        present = table[tails.isin(list(images))]
        if present.empty:
            raise SourceError(
                f"None of the {len(table)} images in CheXpert's label files is below {root.uri}."
            )
        tails = present["Path"].map(_tail)
        patients = [tail.split("/")[1] for tail in tails]
        race = _race(root, files)
        ages, implausible = plausible_ages([age if age != "0" else "" for age in present["Age"]])
        paths = [images[tail] for tail in tails]
        records = record_table(
            {
                "image_id": [tail.partition("/")[2].rpartition(".")[0].replace("/", "_") for tail in tails],
                "patient_id": patients,
                "split": present["split"],
                "view": _views(present),
                "sex": map(parse_sex, present["Sex"]),
                "age": ages,
                "race": [race.get(patient) for patient in patients],
                "findings": label_map(self.name).table_findings(present),
                "path": paths,
                "bytes": [files[path] for path in paths],
            }
        )
        notes = {"not_present": len(table) - len(present), "implausible_age": implausible}
        return Listing(records=records, notes=notes)


def _labels(root: Location, files: Mapping[str, int]) -> pd.DataFrame:
    columns = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *label_map("chexpert").columns]
    tables = []
    for file, split in _SPLITS.items():
        path = find_optional(files, file)
        if path is not None:
            tables.append(read_csv(root, path, columns).assign(split=split))
    if not tables:
        raise SourceError(f"There is no file {' or '.join(_SPLITS)} (plain or .gz) below {root.uri}.")
    return pd.concat(tables, ignore_index=True)


def _tail(path: str) -> str:
    """``train/patient00001/study1/view1_frontal.jpg``, whatever the folder of the release is called."""
    return "/".join(path.split("/")[-4:])


def _views(table: pd.DataFrame) -> Iterable[str | None]:
    pairs = zip(table["Frontal/Lateral"], table["AP/PA"], strict=True)
    return [or_none(detail) if side == "Frontal" else or_none(side) for side, detail in pairs]


def _race(root: Location, files: Mapping[str, int]) -> dict[str, str | None]:
    """Patient to race, from ``CHEXPERT DEMO`` as Excel or CSV file."""
    path = find_optional(files, "CHEXPERT DEMO*.csv", "CHEXPERT DEMO*.xlsx", "chexpert_demo*.csv")
    if path is None:
        return {}
    table = read_excel(root, path) if path.endswith(".xlsx") else read_csv(root, path, ())
    require_columns(table, _DEMOGRAPHICS, f"{root.uri}/{path}")
    return {row["PATIENT"]: or_none(row["PRIMARY_RACE"]) for row in rows_of(table)}
