"""Indiana University chest X-rays (Open-i): official XML, or the Kaggle tables.

Reference: Demner-Fushman et al., "Preparing a collection of radiology examinations", 2016,
https://doi.org/10.1093/jamia/ocv080
"""

from __future__ import annotations

import io
import posixpath
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal
from xml.etree import ElementTree

import pyarrow as pa

from counterray.data.labels import FINDINGS, LabelMap, label_map
from counterray.data.pixels import Rejection
from counterray.data.sources.base import Listing, Source, record_table
from counterray.data.sources.files import (
    IMAGE_SUFFIXES,
    SourceError,
    find_file,
    find_optional,
    list_files,
    read_csv,
)
from counterray.storage import Location

_SECTIONS = ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION")

REPORT_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("report", pa.string(), nullable=False),
        pa.field("findings", pa.struct([pa.field(name, pa.int8()) for name in FINDINGS]), nullable=False),
    ]
)
"""A report without an image, as ``reports.parquet`` holds it (with ``split``)."""


@dataclass(frozen=True)
class _Examination:
    """A report with the stems of its image files (to their view, where that is known)."""

    identifier: str
    sections: Mapping[str, str]
    headings: tuple[str, ...]
    images: Mapping[str, str | None]

    @property
    def report(self) -> str:
        return "\n".join(f"{name}: {text}" for name, text in self.sections.items() if text)


class IuXray(Source):
    """Reports, with whatever images are below the root.

    A report none of whose images is there is kept for work on reports: it goes to ``reports.parquet`` beside
    the shards and is counted as ``report_only``. A report is a patient of its own, as the collection does
    not say which belong together. Sex and age are not in the source.
    """

    name: Literal["iu_xray"] = "iu_xray"
    """The source's name."""
    layout: Literal["auto", "xml", "kaggle"] = "auto"
    """``xml`` reads a folder of XML files or ``NLMCXR_reports.tgz``; ``kaggle`` reads
    ``indiana_reports.csv`` and ``indiana_projections.csv``; ``auto`` takes the first that is there."""

    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]] = {"view": ("Frontal", "Lateral")}

    def listing(self, root: Location) -> Listing:
        """Joins reports with the images that are there; see `Source.listing`."""
        files = list_files(root)
        images = {_stem(path): path for path in files if path.lower().endswith(IMAGE_SUFFIXES)}
        mapping = label_map(self.name)
        rows, reports = [], []
        unknown: Counter[str] = Counter()
        notes: Counter[str] = Counter()
        named: set[str] = set()
        for examination in self._examinations(root, files):
            labels, possible = _labels(examination.headings, mapping)
            unknown.update(mapping.unknown([*labels, *possible]))
            findings = mapping.findings(labels, uncertain=possible)
            said = {
                "patient_id": examination.identifier,
                "report": examination.report,
                "findings": findings,
            }
            named |= set(examination.images)
            here = [stem for stem in examination.images if stem in images]
            notes["not_present"] += len(examination.images) - len(here)
            if not here:
                reports.append({"image_id": examination.identifier, **said})
            for stem in here:
                view = examination.images[stem]
                path = images[stem]
                rows.append({"image_id": stem, "view": view, "path": path, "bytes": files[path], **said})
        notes["report_only"] = len(reports)
        names = ("image_id", "patient_id", "report", "findings", "view", "path", "bytes")
        return Listing(
            records=record_table({name: [row[name] for row in rows] for name in names}),
            rejected=tuple(
                Rejection(stem, "label_missing", "no report names it") for stem in images if stem not in named
            ),
            notes=notes,
            unknown_labels=unknown,
            reports=pa.Table.from_pylist(reports, REPORT_SCHEMA),
        )

    def _examinations(self, root: Location, files: Mapping[str, int]) -> Iterator[_Examination]:
        archive = find_optional(files, "NLMCXR_reports.tgz")
        xml = [path for path in files if path.endswith(".xml")]
        tables = find_optional(files, "indiana_reports.csv")
        if self.layout != "kaggle" and xml:
            return (_from_xml((root / path).read_bytes()) for path in xml)
        if self.layout != "kaggle" and archive is not None:
            return _from_archive((root / archive).read_bytes())
        if self.layout != "xml" and tables is not None:
            return _from_tables(root, files)
        raise SourceError(
            f"There are no reports below {root.uri} for layout {self.layout!r}: XML files or "
            "NLMCXR_reports.tgz (xml), or indiana_reports.csv (kaggle)."
        )


def _from_archive(data: bytes) -> Iterator[_Examination]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                if member.name.endswith(".xml"):
                    stream = archive.extractfile(member)
                    if stream is not None:
                        yield _from_xml(stream.read())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise SourceError(
            f"NLMCXR_reports.tgz is no whole archive ({type(error).__name__}). Fetch the file again."
        ) from None


def _from_xml(data: bytes) -> _Examination:
    try:
        tree = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        line, column = error.position
        raise SourceError(
            f"A report below --root is no XML (line {line}, column {column}). Fetch the reports again."
        ) from None
    identifier = tree.find("uId")
    if identifier is None:
        raise SourceError("A report's XML has no uId; it is not one of the Open-i collection.")
    sections = {part.get("Label", ""): (part.text or "").strip() for part in tree.iter("AbstractText")}
    return _Examination(
        identifier=identifier.get("id", ""),
        sections={name: sections.get(name, "") for name in _SECTIONS},
        headings=tuple(" ".join((major.text or "").split()) for major in tree.iterfind("MeSH/major")),
        images={image.get("id", ""): None for image in tree.iter("parentImage")},
    )


def _from_tables(root: Location, files: Mapping[str, int]) -> Iterator[_Examination]:
    columns = [name.lower() for name in _SECTIONS]
    reports = read_csv(root, find_file(root, files, "indiana_reports.csv"), ("uid", "MeSH", *columns))
    views = read_csv(
        root, find_file(root, files, "indiana_projections.csv"), ("uid", "filename", "projection")
    )
    images: defaultdict[str, dict[str, str | None]] = defaultdict(dict)
    for uid, name, view in zip(views["uid"], views["filename"], views["projection"], strict=True):
        images[uid][_stem(name)] = view
    for row in reports.to_dict("records"):
        yield _Examination(
            identifier=f"CXR{row['uid']}",
            sections={name: row[name.lower()].strip() for name in _SECTIONS},
            headings=tuple(" ".join(part.split()) for part in row["MeSH"].split(";") if part.strip()),
            images=images[row["uid"]],
        )


def _labels(headings: tuple[str, ...], mapping: LabelMap) -> tuple[set[str], set[str]]:
    """Present and uncertain labels of headings such as ``Cardiomegaly/borderline``.

    A heading is a label; with a qualifier it is one only where the map says so (``Thickening/pleura``).
    """
    present: set[str] = set()
    possible: set[str] = set()
    for heading in headings:
        name, *qualifiers = (part.strip() for part in heading.split("/"))
        qualified = {f"{name}/{qualifier}" for qualifier in qualifiers} & set(mapping.labels)
        is_uncertain = bool(set(qualifiers) & set(mapping.uncertain_qualifiers))
        (possible if is_uncertain else present).update({name} | qualified)
    return present, possible


def _stem(path: str) -> str:
    """A file's name without ``.png``, ``.jpg`` or ``.dcm.png``."""
    return posixpath.splitext(posixpath.basename(path))[0].removesuffix(".dcm")
