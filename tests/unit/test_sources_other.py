"""COVID, IU, DICOM folders, tables and the phantom as sources."""

from __future__ import annotations

import io
import logging
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from counterray.config import ConfigError, load, validate
from counterray.data.ingest import IngestConfig
from counterray.data.phantom.studies import PhantomConfig, draw_rows
from counterray.data.pixels import Rejection, decode_grey
from counterray.data.sources import SourceError
from counterray.data.sources.base import UNASSIGNED
from counterray.data.sources.covid_cxr import CovidCxr
from counterray.data.sources.dicom_folder import DicomFolder
from counterray.data.sources.iu_xray import IuXray
from counterray.data.sources.nih_cxr14 import NihCxr14
from counterray.data.sources.phantom import Phantom
from counterray.data.sources.table import Table
from counterray.data.sources.values import parse_age
from counterray.storage import resolve
from tests.radiographs import image_bytes, write_image

COVID = """patientid,offset,sex,age,finding,view,modality,location,filename,clinical_notes
1,0,M,65,Pneumonia/Viral/COVID-19,PA,X-ray,"Hanoi, Vietnam",a.png,Infiltrate in the left lung.
1,3,M,65,"COVID-19, ARDS",AP,X-ray,,b.png,
2,0,F,,No Finding,PA,X-ray,,gone.png,
3,0,F,52,COVID-19,Axial,CT,,c.png,
"""

SCORES = "## licence,,\nfilename,geographic_mean,opacity_mean\na.png,4.0,1.5\n"

XML = """<eCitation><uId id="CXR7"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION">Cough</AbstractText>
<AbstractText Label="FINDINGS">Heart size borderline.</AbstractText>
<AbstractText Label="IMPRESSION">No effusion.</AbstractText></Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/borderline</major><major>Thickening/pleura/apex</major><major>Dragon</major>
<automatic>cough</automatic></MeSH>
<parentImage id="CXR7_IM-1001"/><parentImage id="CXR7_IM-2001"/></eCitation>"""


def rows_of(listing) -> list[dict]:
    return listing.records.to_pylist()


def read(source, root: Path, rows: list[dict], size: int = 64):
    given = [{**row, "split": row["split"] or "train"} for row in rows]
    return list(source.read(resolve(root), given, size=size, fit="letterbox"))


def covid_root(root: Path) -> Path:
    (root / "metadata.csv").write_text(COVID)
    (root / "annotations").mkdir()
    (root / "annotations" / "covid-severity-scores.csv").write_text(SCORES)
    for seed, name in enumerate("ab"):
        write_image(root / "images" / f"{name}.png", seed, 96, 64)
    return root


def test_covid_in_its_official_form(tmp_path):
    listing = CovidCxr().listing(resolve(covid_root(tmp_path)))
    first, second = rows_of(listing)
    assert first["patient_id"] == second["patient_id"] == "1"
    assert (first["site"], first["report"]) == ("Hanoi, Vietnam", "Infiltrate in the left lung.")
    assert (second["site"], second["report"], second["age"]) == (None, None, 65)
    assert (first["findings"]["pneumonia"], first["findings"]["lung_opacity"]) == (1, None)
    assert (second["findings"]["pneumonia"], second["findings"]["lung_opacity"]) == (1, 1)
    assert dict(first["measurements"]) == {"severity_extent": 0.5, "severity_opacity": 0.25}
    assert listing.notes == {"not_radiograph": 1, "repeated_row": 0, "implausible_age": 0}
    assert [(item.image_id, item.reason) for item in listing.rejected] == [("gone", "missing_image")]


def test_the_real_covid_set_with_its_lung_masks(real_data):
    root = real_data / "covid_cxr"
    listing = CovidCxr().listing(resolve(root))
    assert len(listing.records) == 218
    assert (listing.rejected, listing.unknown_labels) == ((), {})
    rows = rows_of(listing)
    assert sum("lungs" in dict(row["mask_paths"]) for row in rows) == 121
    assert sum("artefacts" in dict(row["mask_paths"]) for row in rows) == 12
    scored = [row for row in rows if row["measurements"]]
    assert len(scored) == 21
    assert all(0 <= value <= 1 for row in scored for _, value in row["measurements"])
    with_mask = [row for row in rows if row["mask_paths"]][:8]
    for study in read(CovidCxr(), root, with_mask):
        assert not isinstance(study, Rejection)
        lungs = decode_grey(study.masks["lungs"]).astype(bool)
        assert lungs.shape == decode_grey(study.image).shape == (64, 64)
        assert 0.1 < lungs.mean() < 0.7
        assert decode_grey(study.image)[lungs].mean() > 0, "the mask lies on the film, not on its padding"


def test_iu_reports_without_images_are_kept_apart(tmp_path):
    (tmp_path / "7.xml").write_text(XML)
    listing = IuXray().listing(resolve(tmp_path))
    assert len(listing.records) == 0
    assert listing.notes == {"not_present": 2, "report_only": 1}
    (report,) = listing.reports.to_pylist()
    assert report["report"] == "INDICATION: Cough\nFINDINGS: Heart size borderline.\nIMPRESSION: No effusion."
    assert report["findings"]["cardiomegaly"] == -1, "borderline"
    assert report["findings"]["pleural_other"] == 1, "thickening, of the pleura"
    assert report["findings"]["pneumothorax"] == 0, "headings are complete"
    assert listing.unknown_labels == {"Dragon": 1}


@pytest.mark.parametrize("packed", [False, True])
def test_iu_images_join_their_report(tmp_path, packed):
    if packed:
        with tarfile.open(tmp_path / "NLMCXR_reports.tgz", "w:gz") as archive:
            member = tarfile.TarInfo("ecgen-radiology/7.xml")
            member.size = len(XML.encode())
            archive.addfile(member, io.BytesIO(XML.encode()))
    else:
        (tmp_path / "7.xml").write_text(XML)
    write_image(tmp_path / "images" / "CXR7_IM-1001.png", 1)
    write_image(tmp_path / "images" / "CXR8_IM-1001.png", 2)
    listing = IuXray().listing(resolve(tmp_path))
    (row,) = rows_of(listing)
    assert (row["image_id"], row["patient_id"]) == ("CXR7_IM-1001", "CXR7")
    assert row["report"].endswith("IMPRESSION: No effusion.")
    assert [(item.image_id, item.reason) for item in listing.rejected] == [("CXR8_IM-1001", "label_missing")]
    assert len(listing.reports) == 0


def test_iu_in_the_kaggle_form_knows_the_view(tmp_path):
    (tmp_path / "indiana_reports.csv").write_text(
        "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
        "7,normal,normal,Xray,Cough,,Clear.,Normal.\n"
    )
    (tmp_path / "indiana_projections.csv").write_text(
        "uid,filename,projection\n7,7_IM-1.dcm.png,Frontal\n7,7_IM-2.dcm.png,Lateral\n"
    )
    write_image(tmp_path / "images" / "7_IM-2.dcm.png", 1)
    (row,) = rows_of(IuXray(layout="kaggle").listing(resolve(tmp_path)))
    assert (row["view"], row["patient_id"], row["findings"]["no_finding"]) == ("Lateral", "CXR7", 1)


def test_the_real_iu_reports_in_both_forms(real_data):
    root = resolve(real_data / "iu_xray_reports")
    xml, kaggle = IuXray(layout="xml").listing(root), IuXray(layout="kaggle").listing(root)
    assert (len(xml.reports), len(kaggle.reports)) == (3955, 3851)
    assert not xml.unknown_labels
    assert not kaggle.unknown_labels
    ours = {row["image_id"]: row["findings"] for row in xml.reports.to_pylist()}
    theirs = {row["image_id"]: row["findings"] for row in kaggle.reports.to_pylist()}
    agreeing = sum(ours[name] == findings for name, findings in theirs.items())
    assert agreeing > 0.99 * len(theirs), "two copies of one labelling"


def test_iu_without_reports_says_what_it_looked_for(tmp_path):
    with pytest.raises(SourceError, match="indiana_reports"):
        IuXray().listing(resolve(tmp_path))


@pytest.mark.parametrize("salt", ["", " ", "**********"])
def test_dicom_without_a_secret_salt_is_refused(tmp_path, salt):
    (tmp_path / "a.dcm").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"set source\.salt to a secret of your own.*never written"):
        validate(DicomFolder, {"salt": salt}).listing(resolve(tmp_path))


@pytest.mark.parametrize("source", [{"name": "dicom_folder", "salt": 98765}, {"nam": "x", "salt": 98765}])
def test_a_salt_is_not_echoed_by_an_error(source):
    with pytest.raises(ConfigError, match="source") as caught:
        validate(IngestConfig, {"source": source})
    assert "98765" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"source\.salt.*in quotes") as caught:
        load(IngestConfig, None, ["source.salt=[98765"])
    assert "98765" not in str(caught.value)


def test_the_real_dicom_folder(real_data, caplog):
    root = real_data / "dicom_cxr"
    source = validate(DicomFolder, {"salt": "a secret of the test"})
    with caplog.at_level(logging.DEBUG):
        listing = source.listing(resolve(root))
    items = read(source, root, rows_of(listing))
    assert Counter(getattr(item, "reason", "kept") for item in items) == {"kept": 4, "not_chest": 1}
    kept = [item for item in items if not isinstance(item, Rejection)]
    assert sorted(study.age for study in kept if study.age) == [62, 62, 81], "81 has no unit"
    copies = [study for study in kept if study.age == 62]
    assert copies[0].patient_id == copies[1].patient_id
    assert (decode_grey(copies[0].image).astype(int) + decode_grey(copies[1].image) >= 254).all(), "negatives"
    assert copies[0].pixel_spacing == pytest.approx(0.168 * 1024 / 64)
    philips = next(study for study in kept if study.scanner)
    assert philips.pixel_spacing is None, "the file states a spacing of 0"
    text = repr(items) + caplog.text
    for identifier in ("9RG1", "16d7f894", "Covid0000", "1.2.276", "Hamburg", "1.3.6.1", "RG1_J2KI"):
        assert identifier not in text


def test_another_salt_hides_the_same_patient_differently(real_data):
    root = real_data / "dicom_cxr"
    names = [
        {row["image_id"] for row in rows_of(validate(DicomFolder, {"salt": salt}).listing(resolve(root)))}
        for salt in ("one", "two")
    ]
    assert not names[0] & names[1]


def test_the_salt_is_not_in_the_written_config():
    config = validate(IngestConfig, {"source": {"name": "dicom_folder", "salt": "my-secret"}})
    assert "my-secret" not in str(config.model_dump(mode="json")) + repr(config)


@pytest.mark.parametrize(
    ("text", "years"),
    [("81", 81), ("058Y", 58), ("013M", 13 / 12), ("6W", 42 / 365.25), ("001D", 1 / 365.25), ("62.0", 62)],
)
def test_ages(text, years):
    assert parse_age(text) == pytest.approx(years)


def test_ages_that_cannot_be():
    assert np.isnan(parse_age("411Y"))
    assert [parse_age(text) for text in ("", None, "XXXX", "-3")] == [None] * 4


def table_root(root: Path) -> Path:
    frame = pd.DataFrame(
        {
            "file": ["a.png", "b.png", "gone.png", "c.png"],
            "who": ["p1", "p2", "p3", ""],
            "fold": ["Train", "valid", "test", "test"],
            "edema": ["1", "-1", "0", ""],
            "area": ["10.5", "", "3", "1"],
            "lung": ["a_mask.png", "", "", ""],
            "mm": ["0.5", "0", "", ""],
        }
    )
    frame.to_csv(root / "all.csv", index=False)
    for seed, name in enumerate("abc"):
        write_image(root / f"{name}.png", seed, 128, 64)
    mask = np.zeros((128, 64), np.uint8)
    mask[64:] = 255
    (root / "a_mask.png").write_bytes(image_bytes(mask))
    return root


COLUMNS = {
    "path": "file",
    "patient_id": "who",
    "split": "fold",
    "pixel_spacing": "mm",
    "findings": {"edema": "edema"},
    "measurements": {"heart_area": "area"},
    "masks": {"lungs": "lung"},
}


def test_a_table_with_its_own_columns(tmp_path):
    source = validate(Table, {"file": "all.csv", "columns": COLUMNS})
    listing = source.listing(resolve(table_root(tmp_path)))
    first, second = rows_of(listing)
    assert (first["split"], second["split"]) == ("train", "validation")
    assert (first["findings"]["edema"], second["findings"]["edema"]) == (1, -1)
    assert (first["findings"]["fracture"], second["measurements"]) == (None, [])
    assert [(item.image_id, item.reason) for item in listing.rejected] == [
        ("gone.png", "missing_image"),
        ("c.png", "label_missing"),
    ]
    study, _ = read(source, tmp_path, [first, second])
    assert study.measurements == {"heart_area": 10.5}
    assert study.pixel_spacing == 1.0, "0.5 mm, halved in size"
    mask = decode_grey(study.masks["lungs"])
    assert mask.sum() == 32 * 32
    assert mask[32:, 16:48].all()


def test_a_table_as_parquet_gives_the_same(tmp_path):
    root = table_root(tmp_path)
    pd.read_csv(root / "all.csv").to_parquet(root / "all.parquet")
    csv, parquet = (
        validate(Table, {"file": file, "columns": COLUMNS}).listing(resolve(root))
        for file in ("all.csv", "all.parquet")
    )
    assert csv.records.drop_columns("pixel_spacing").equals(parquet.records.drop_columns("pixel_spacing"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {**COLUMNS, "sex": "gender"}}, "no column 'gender'"),
        ({"columns": {**COLUMNS, "findings": {"dragon": "edema"}}}, "dragon"),
        ({"columns": {**COLUMNS, "labels": "fold"}}, "label_map"),
        ({"label_map": "nih"}, r"source\.label_map is 'nih'; known maps are .*nih_cxr14"),
        ({"columns": {**COLUMNS, "findings": {"edema": "area"}}}, "'edema' holds a value that is none of"),
        ({"file": "a.png"}, "no UTF-8 text"),
        ({"columns": {**COLUMNS, "measurements": {"x": "who"}}}, "no number"),
        ({"columns": {**COLUMNS, "split": "who"}}, "'p1', 'p2'"),
        ({"file": "other.csv"}, "no table other.csv"),
    ],
)
def test_a_table_that_is_not_as_said(tmp_path, change, message):
    source = validate(Table, {"file": "all.csv", "columns": COLUMNS, **change})
    with pytest.raises(ConfigError, match=message):
        source.listing(resolve(table_root(tmp_path)))


def test_a_damaged_parquet_table_is_named(tmp_path):
    root = table_root(tmp_path)
    pd.read_csv(root / "all.csv").to_parquet(root / "all.parquet")
    whole = (root / "all.parquet").read_bytes()
    for damaged in (b"", whole[:-40], b"text" * 9):
        (root / "all.parquet").write_bytes(damaged)
        with pytest.raises(SourceError, match=r"all\.parquet is no whole Parquet file"):
            validate(Table, {"file": "all.parquet", "columns": COLUMNS}).listing(resolve(root))


def test_a_root_that_is_a_file_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"--root .*all\.csv is a file; give the folder"):
        NihCxr14().listing(resolve(table_root(tmp_path) / "all.csv"))


def test_the_phantom_is_drawn_in_the_workers(tmp_path):
    source = Phantom(studies=12, seed=5)
    rows = rows_of(source.listing(resolve(tmp_path)))
    assert {row["patient_id"] for row in rows} == {UNASSIGNED}
    part = list(source.read(resolve(tmp_path), rows[4:7], size=32, fit="letterbox"))
    whole = draw_rows(PhantomConfig(studies=12, image_size=32, seed=5), 0, 12)
    assert [study.image_id for study in part] == [study.image_id for study in whole[4:7]]
    assert [study.image for study in part] == [study.image for study in whole[4:7]]


def test_the_phantoms_image_size_is_checked_before_any_work():
    with pytest.raises(ConfigError, match=r"image_size.*phantom gives images of 32 to 512 px.*got 1024"):
        validate(IngestConfig, {"source": "phantom", "image_size": 1024})
    assert validate(IngestConfig, {"source": "phantom", "image_size": 512}).image_size == 512
    for edge in Phantom.image_sizes:
        assert PhantomConfig(image_size=edge).image_size == edge
    assert validate(IngestConfig, {"source": "nih_cxr14", "image_size": 1024}).image_size == 1024


def test_an_unknown_source_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"nih_cxr14.*padchest"):
        validate(IngestConfig, {"source": "nih"})


def test_a_source_may_be_named_alone():
    assert validate(IngestConfig, {"source": "phantom"}).source == Phantom()


def test_a_file_in_the_tree_that_is_hidden_is_not_listed(tmp_path):
    root = covid_root(tmp_path)
    shutil.copy(root / "metadata.csv", root / "._metadata.csv")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "metadata.csv").write_text("junk\n")
    assert len(CovidCxr().listing(resolve(root)).records) == 2


SOURCES = (
    "phantom",
    "nih_cxr14",
    "covid_cxr",
    "chexpert",
    "mimic_cxr",
    "padchest",
    "iu_xray",
    "dicom_folder",
    "table",
)

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "ingest"


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_a_shipped_config(name):
    path = CONFIGS / f"{name}.yaml"
    assert load(IngestConfig, path).source.name == name
    assert "python -m jobs ingest" in path.read_text()
