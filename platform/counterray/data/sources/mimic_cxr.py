"""MIMIC-CXR-JPG, joined with the patients and admissions of MIMIC-IV for sex, age and race.

Reference: Johnson et al., "MIMIC-CXR-JPG", 2019, https://arxiv.org/abs/1901.07042
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import ClassVar, Literal

import pandas as pd

from counterray.data.labels import label_map
from counterray.data.sources.base import Listing, Source, record_table, rows_of
from counterray.data.sources.files import (
    IMAGE_SUFFIXES,
    SourceError,
    find_file,
    find_optional,
    list_files,
    read_csv,
)
from counterray.data.sources.values import or_none, parse_sex, plausible_ages, years_between
from counterray.storage import Location

_SPLITS = {"train": "train", "validate": "validation", "test": "test"}

# Entries of the admissions' race that state nothing.
_UNSTATED_RACE = {"", "UNKNOWN", "UNABLE TO OBTAIN", "PATIENT DECLINED TO ANSWER"}


class MimicCxr(Source):
    """``mimic-cxr-2.0.0-{metadata,chexpert,split}.csv``, ``files/p10/p10000032/s50414267/*.jpg``.

    Where they are below the root: reports as ``s50414267.txt``, and MIMIC-IV's ``patients.csv`` and
    ``admissions.csv``. Age at the examination is the anchor age plus the years since the anchor year; race is
    the patient's most frequent stated entry. A study that the labeler left out has no labels.
    """

    name: Literal["mimic_cxr"] = "mimic_cxr"
    """The source's name."""

    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sex": ("female", "male"),
        "view": ("PA", "AP"),
    }
    official_split: ClassVar[str | None] = "mimic-cxr-2.0.0-split.csv"

    def listing(self, root: Location) -> Listing:
        """Joins the tables with the images that are there; see `Source.listing`."""
        files = list_files(root)
        metadata_path = find_file(root, files, "mimic-cxr-*-metadata.csv")
        table = read_csv(
            root, metadata_path, ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate")
        )
        images = {_stem(path): path for path in files if path.lower().endswith(IMAGE_SUFFIXES)}
        present = table[table["dicom_id"].isin(list(images))]
        if present.empty:
            raise SourceError(f"None of the {len(table)} images in {metadata_path} is below {root.uri}.")
        joined = _joined(root, files, present)
        ages, implausible = plausible_ages(_ages(joined))
        reports = {_stem(path): path for path in files if path.endswith(".txt")}
        paths = [images[name] for name in joined["dicom_id"]]
        records = record_table(
            {
                "image_id": joined["dicom_id"],
                "patient_id": joined["subject_id"],
                "split": [_SPLITS.get(split) for split in joined["split"]],
                "view": map(or_none, joined["ViewPosition"]),
                "sex": map(parse_sex, joined["gender"]),
                "age": ages,
                "race": map(or_none, joined["race"]),
                "findings": label_map(self.name).table_findings(joined),
                "report_path": [reports.get(f"s{study}") for study in joined["study_id"]],
                "path": paths,
                "bytes": [files[path] for path in paths],
            }
        )
        notes = {
            "not_present": len(table) - len(present),
            "implausible_age": implausible,
            "no_demographics": int((joined["gender"] == "").sum()),
        }
        return Listing(records=records, notes=notes)


def _joined(root: Location, files: Mapping[str, int], present: pd.DataFrame) -> pd.DataFrame:
    """The images' rows with labels, split, sex, anchor and race; empty text where a table has no row."""
    labels = read_csv(
        root,
        find_file(root, files, "mimic-cxr-*-chexpert.csv"),
        ("subject_id", "study_id", *label_map("mimic_cxr").columns),
    )
    joined = present.merge(labels.drop(columns="subject_id"), on="study_id", how="left")
    split_path = find_optional(files, "mimic-cxr-*-split.csv")
    if split_path is not None:
        splits = read_csv(root, split_path, ("dicom_id", "split"))
        joined = joined.merge(splits[["dicom_id", "split"]], on="dicom_id", how="left")
    patients_path = find_optional(files, "patients.csv")
    if patients_path is not None:
        patients = read_csv(root, patients_path, ("subject_id", "gender", "anchor_age", "anchor_year"))
        joined = joined.merge(
            patients[["subject_id", "gender", "anchor_age", "anchor_year"]], on="subject_id", how="left"
        )
    admissions_path = find_optional(files, "admissions.csv")
    if admissions_path is not None:
        race = _race(read_csv(root, admissions_path, ("subject_id", "race")))
        joined["race"] = joined["subject_id"].map(race)
    missing = [
        name for name in ("split", "gender", "anchor_age", "anchor_year", "race") if name not in joined
    ]
    return joined.assign(**dict.fromkeys(missing, "")).fillna("")


def _race(admissions: pd.DataFrame) -> dict[str, str]:
    """Patient to the race stated most often; of equals the first by the alphabet."""
    stated = admissions[~admissions["race"].isin(_UNSTATED_RACE)]
    counted = stated.groupby(["subject_id", "race"]).size().reset_index(name="times")
    ordered = counted.sort_values(["subject_id", "times", "race"], ascending=[True, False, True])
    first = ordered.drop_duplicates("subject_id")
    return dict(zip(first["subject_id"], first["race"], strict=True))


def _ages(table: pd.DataFrame) -> list[str]:
    born = [years_between(row["anchor_age"], row["anchor_year"]) for row in rows_of(table)]
    return [years_between(year, date[:4]) for year, date in zip(born, table["StudyDate"], strict=True)]


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]
