"""NIH, CheXpert, MIMIC and PadChest in their official layouts."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from counterray.data.pixels import Rejection
from counterray.data.sources import SourceError
from counterray.data.sources.chexpert import CheXpert
from counterray.data.sources.mimic_cxr import MimicCxr
from counterray.data.sources.nih_cxr14 import NihCxr14
from counterray.data.sources.padchest import PadChest
from counterray.data.splits import TRAIN_VALIDATION
from counterray.storage import resolve
from tests.radiographs import write_image

FORMATS = Path(__file__).resolve().parent.parent / "data" / "label_formats"
"""Invented rows under the official headers."""

NIH_2020 = """Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,\
OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]
00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA,2048,2500,0.15,0.15
00000002_000.png,No Finding,0,2,411,F,AP,1024,1024,0.2,0.2
00000003_000.png,Dragon,0,3,30,F,AP,1024,1024,0.2,0.2
00000004_000.png,Edema,0,4,30,F,AP,1024,1024,0.2,0.2
"""

# The first release: ages with their unit, padded patients, and a comma at the end of the header.
NIH_2017 = (
    NIH_2020.replace("[x,y]\n", "[x,y],\n")
    .replace(",1,57,", ",00000001,058Y,")
    .replace(",2,411,", ",2,006M,")
)

NIH_KAGGLE = NIH_2020.replace(
    "OriginalImage[Width,Height]", "OriginalImageWidth,OriginalImageHeight"
).replace("OriginalImagePixelSpacing[x,y]", "OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y")


def rows_of(listing) -> list[dict]:
    return listing.records.to_pylist()


def read(source, root: Path, rows: list[dict], size: int = 64):
    given = [{**row, "split": row["split"] or "train"} for row in rows]
    return list(source.read(resolve(root), given, size=size, fit="letterbox"))


def nih_root(root: Path, name: str, text: str) -> Path:
    (root / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    write_image(root / "images_001" / "images" / "00000001_000.png", 1, 128, 128)
    write_image(root / "images_002" / "images" / "00000002_000.png", 2)
    write_image(root / "images" / "00000003_000.png", 3)
    return root


@pytest.mark.parametrize(
    ("name", "text", "ages"),
    [
        ("Data_Entry_2017_v2020.csv", NIH_2020, [57, None, 30]),
        ("Data_Entry_2017.csv.gz", NIH_2017, [58, 0.5, 30]),
        ("sample_labels.csv", NIH_KAGGLE, [57, None, 30]),
    ],
)
def test_nih_in_its_three_releases(tmp_path, name, text, ages):
    listing = NihCxr14().listing(resolve(nih_root(tmp_path, name, text)))
    first, second, third = rows_of(listing)
    assert [first["age"], second["age"], third["age"]] == ages
    assert listing.notes == {"not_present": 1, "implausible_age": ages.count(None)}
    assert first["patient_id"] == "00000001"
    assert (first["sex"], first["view"], first["findings"]["cardiomegaly"]) == ("male", "PA", 1)
    assert (second["findings"]["no_finding"], second["findings"]["cardiomegaly"]) == (1, 0)
    assert listing.unknown_labels == {"Dragon": 1}
    assert third["findings"]["no_finding"] == 0, "an unknown label is not normal"


def test_nih_pixel_spacing_follows_both_resizings(tmp_path):
    """2048 px of 0.15 mm are 307.2 mm; on 64 px that is 4.8 mm, whatever size the file had in between."""
    root = nih_root(tmp_path, "Data_Entry_2017.csv", NIH_2020)
    rows = rows_of(NihCxr14().listing(resolve(root)))
    assert read(NihCxr14(), root, rows[:1])[0].pixel_spacing == pytest.approx(4.8)


def test_nih_official_split_and_an_image_without_a_label(tmp_path):
    root = nih_root(tmp_path, "Data_Entry_2017.csv", NIH_2020)
    write_image(root / "images" / "00000099_000.png", 9)
    (root / "train_val_list.txt").write_text("00000001_000.png\n00000004_000.png\n")
    (root / "test_list.txt").write_text("00000002_000.png\n")
    listing = NihCxr14().listing(resolve(root))
    assert [row["split"] for row in rows_of(listing)] == [TRAIN_VALIDATION, "test", None]
    assert [(item.image_id, item.reason) for item in listing.rejected] == [("00000099_000", "label_missing")]


def test_nih_without_images_says_how_many_it_looked_for(tmp_path):
    (tmp_path / "Data_Entry_2017.csv").write_text(NIH_2020)
    with pytest.raises(SourceError, match="None of the 4 images"):
        NihCxr14().listing(resolve(tmp_path))


def test_a_label_file_without_its_column_is_named(tmp_path):
    root = nih_root(tmp_path, "Data_Entry_2017.csv", NIH_2020.replace("Finding Labels", "Diagnosis"))
    with pytest.raises(SourceError, match=r"no column 'Finding Labels'; its columns are .*'Diagnosis'"):
        NihCxr14().listing(resolve(root))


def test_no_label_file_and_no_folder(tmp_path):
    with pytest.raises(SourceError, match=r"no file Data_Entry_2017\*.csv or \*sample_labels.csv"):
        NihCxr14().listing(resolve(tmp_path))
    with pytest.raises(SourceError, match="no folder"):
        NihCxr14().listing(resolve(tmp_path / "absent"))


def test_the_real_nih_label_file_with_few_of_its_images(real_data, tmp_path):
    (tmp_path / "images").symlink_to(real_data / "nih_cxr14_64px" / "images")
    shutil.copy(real_data / "label_formats" / "nih" / "Data_Entry_2017_v2020.csv.gz", tmp_path)
    listing = NihCxr14().listing(resolve(tmp_path))
    assert len(listing.records) == 693
    assert listing.notes == {"not_present": 112_120 - 693, "implausible_age": 0}
    assert not listing.unknown_labels
    assert len(set(listing.records["patient_id"].to_pylist())) == 182
    studies = read(NihCxr14(), tmp_path, rows_of(listing)[:20])
    assert not any(isinstance(study, Rejection) for study in studies)


@pytest.mark.parametrize("release", ["", "CheXpert-v1.0-small/"])
def test_chexpert(tmp_path, release):
    shutil.copy(FORMATS / "train_FABRICATED_ROWS.csv", tmp_path / "train.csv")
    (tmp_path / "CHEXPERT DEMO.csv").write_text(
        "PATIENT,GENDER,AGE_AT_CXR,PRIMARY_RACE,ETHNICITY\npatient99002,Male,45,Asian,Non-Hispanic/Non-Latino\n"
    )
    for seed, name in enumerate(
        [
            "99001/study1/view1_frontal",
            "99002/study1/view1_frontal",
            "99002/study1/view2_lateral",
            "99003/study4/view1_frontal",
        ]
    ):
        write_image(tmp_path / f"{release}train/patient{name}.jpg", seed)
    listing = CheXpert().listing(resolve(tmp_path))
    normal, frontal, lateral, unknown = rows_of(listing)
    assert normal["image_id"] == "patient99001_study1_view1_frontal"
    assert (normal["split"], normal["patient_id"], normal["race"]) == ("train", "patient99001", None)
    assert normal["findings"] == {name: (1 if name == "no_finding" else None) for name in normal["findings"]}
    stated = {name: value for name, value in frontal["findings"].items() if value is not None}
    assert stated == {"cardiomegaly": -1, "edema": 1, "pneumothorax": 0, "pleural_effusion": 1}
    assert [row["view"] for row in (normal, frontal, lateral, unknown)] == ["PA", "PA", "Lateral", "AP"]
    assert frontal["race"] == lateral["race"] == "Asian"
    assert (unknown["sex"], unknown["age"]) == (None, None), "age 0 stands for unknown"
    assert len(read(CheXpert(), tmp_path, rows_of(listing))) == 4


def test_chexpert_demographics_as_excel(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    shutil.copy(FORMATS / "train_FABRICATED_ROWS.csv", tmp_path / "train.csv")
    write_image(tmp_path / "train/patient99001/study1/view1_frontal.jpg", 1)
    book = openpyxl.Workbook()
    book.active.append(["PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY"])
    book.active.append(["patient99001", "Female", 33, "Other", None])
    book.save(tmp_path / "CHEXPERT DEMO.xlsx")
    assert rows_of(CheXpert().listing(resolve(tmp_path)))[0]["race"] == "Other"


def mimic_root(root: Path, *, demographics: bool) -> Path:
    for table in ("chexpert", "metadata", "split"):
        data = (FORMATS / f"mimic-cxr-2.0.0-{table}_FABRICATED_ROWS.csv").read_bytes()
        (root / f"mimic-cxr-2.0.0-{table}.csv.gz").write_bytes(gzip.compress(data))
    if demographics:
        for table in ("patients", "admissions"):
            (root / "hosp").mkdir(exist_ok=True)
            shutil.copy(FORMATS / f"mimic-iv_{table}_FABRICATED_ROWS.csv", root / "hosp" / f"{table}.csv")
    stem = "00000000-00000000-00000000-00000000-0000000"
    write_image(root / f"files/p99/p99000001/s59000001/{stem}1.jpg", 1)
    write_image(root / f"files/p99/p99000002/s59000002/{stem}3.jpg", 3)
    (root / "files/p99/p99000002/s59000002.txt").write_text("FINAL REPORT\n No pneumothorax.\n")
    return root


def test_mimic_joined_with_the_patients(tmp_path):
    root = mimic_root(tmp_path, demographics=True)
    listing = MimicCxr().listing(resolve(root))
    first, second = rows_of(listing)
    assert listing.notes == {"not_present": 1, "implausible_age": 0, "no_demographics": 0}
    assert (first["sex"], first["age"], first["race"]) == ("female", 47, "BLACK/AFRICAN AMERICAN")
    assert (second["sex"], second["age"], second["race"]) == ("male", 67, None), "66 in 2121, seen in 2122"
    assert (first["split"], second["split"]) == ("train", "test")
    assert (first["view"], second["view"]) == ("PA", "AP")
    assert {name: value for name, value in second["findings"].items() if value is not None} == {
        "cardiomegaly": 1,
        "edema": -1,
        "pleural_effusion": 1,
        "pneumothorax": 0,
    }
    studies = read(MimicCxr(), root, rows_of(listing))
    assert [study.report for study in studies] == [None, "FINAL REPORT\n No pneumothorax.\n"]


def test_mimic_without_mimic_iv_counts_what_it_does_not_know(tmp_path):
    listing = MimicCxr().listing(resolve(mimic_root(tmp_path, demographics=False)))
    assert listing.notes["no_demographics"] == 2
    assert rows_of(listing)[0]["sex"] is None


def test_mimic_race_is_the_patients_most_frequent_statement(tmp_path):
    root = mimic_root(tmp_path, demographics=True)
    said = ["UNKNOWN", "UNKNOWN", "UNKNOWN", "WHITE", "ASIAN", "ASIAN"]
    (root / "hosp" / "admissions.csv").write_text(
        "subject_id,race\n" + "".join(f"99000002,{race}\n" for race in said)
    )
    assert [row["race"] for row in rows_of(MimicCxr().listing(resolve(root)))] == [None, "ASIAN"]


def test_padchest(tmp_path):
    shutil.copy(
        FORMATS / "PADCHEST_labels_FABRICATED_ROWS.csv",
        tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
    )
    write_image(tmp_path / "0" / "999000000000000000000000000000000000001_abc123.png", 1)
    write_image(tmp_path / "1" / "999000000000000000000000000000000000002_def456.png", 2)
    listing = PadChest().listing(resolve(tmp_path))
    normal, ill = rows_of(listing)
    assert (normal["sex"], normal["age"], normal["view"]) == ("female", 51, "PA"), "born 1961, seen 2012"
    assert normal["report"] == "torax sin cambi"
    assert normal["findings"]["no_finding"] == 1
    assert (ill["sex"], ill["age"], ill["view"], ill["scanner"]) == ("male", None, "AP_horizontal", None)
    assert (ill["findings"]["cardiomegaly"], ill["findings"]["pleural_effusion"]) == (1, 1)
    assert (ill["findings"]["pneumothorax"], ill["findings"]["no_finding"]) == (0, 0)
    assert not listing.unknown_labels
    assert len(read(PadChest(), tmp_path, rows_of(listing))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (NIH_2020.replace("Cardiomegaly", '"Cardiomegaly').encode(), "no CSV table.*quotes on both sides"),
        (NIH_2020.replace("Edema", "\u00d6dem").encode("latin1"), "no UTF-8 text.*iconv"),
        (gzip.compress(NIH_2020.encode())[:-20], r"cannot be unpacked.*again"),
        (NIH_2020.replace(",2,411", ",abc,411").encode(), "'Patient ID' holds no whole number in row 2"),
    ],
)
def test_a_label_file_that_cannot_be_read_is_named(tmp_path, content, message):
    root = nih_root(tmp_path, "Data_Entry_2017.csv", NIH_2020)
    (root / "Data_Entry_2017.csv").write_bytes(content)
    with pytest.raises(SourceError, match=rf"(?s)Data_Entry_2017\.csv.*{message}") as caught:
        NihCxr14().listing(resolve(root))
    assert "abc" not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("labels", ["no list", "['pneumonia'", "7", "[1]"])
def test_a_padchest_row_without_a_list_of_labels_is_set_aside(tmp_path, labels):
    header = "ImageID,StudyDate_DICOM,PatientID,PatientBirth,PatientSex_DICOM,Projection,Manufacturer_DICOM"
    rows = [f"a.png,20120101,p1,1961.0,F,PA,X,r,{labels}", "b.png,someday,p2,1961.0,F,PA,X,r,['pneumonia']"]
    path = tmp_path / "PADCHEST_chest_x_ray_images_labels_160K.csv"
    path.write_text("\n".join([f"{header},Report,Labels", *rows]) + "\n")
    for seed, name in enumerate(("a.png", "b.png")):
        write_image(tmp_path / name, seed)
    listing = PadChest().listing(resolve(tmp_path))
    assert listing.rejected == (Rejection("a", "label_missing", "Labels is no list"),)
    (row,) = rows_of(listing)
    assert (row["image_id"], row["age"], row["findings"]["pneumonia"]) == ("b", None, 1)
    assert listing.notes["not_present"] == 0
