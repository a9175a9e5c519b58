"""What enters counterray, a `Study` (one Arrow row), and what a model sees, a `Batch` of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from counterray.data.labels import FINDINGS

SCHEMA_VERSION = 1
"""Raised whenever `ARROW_SCHEMA` changes; readers refuse any other version."""

ATTRIBUTES: Mapping[str, str] = {
    "sex": "categorical",
    "age": "continuous",
    "race": "categorical",
    "group": "categorical",
    "site": "categorical",
    "scanner": "categorical",
    "view": "categorical",
}
"""Study fields that a model may read as attributes, and their kind."""

UNITS: Mapping[str, str] = {"age": "years"}
"""Unit of each continuous attribute."""

ARROW_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("pixel_spacing", pa.float32()),
        pa.field("view", pa.string()),
        pa.field("sex", pa.string()),
        pa.field("age", pa.float32()),
        pa.field("race", pa.string()),
        pa.field("group", pa.string()),
        pa.field("site", pa.string()),
        pa.field("scanner", pa.string()),
        pa.field("findings", pa.struct([pa.field(name, pa.int8()) for name in FINDINGS]), nullable=False),
        pa.field("measurements", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("masks", pa.map_(pa.string(), pa.binary()), nullable=False),
        pa.field("report", pa.string()),
        pa.field("refined_report", pa.string()),
    ],
    metadata={"counterray.study": str(SCHEMA_VERSION)},
)
"""The row of every ingested Parquet shard."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One image of one patient, with what is known of it.

    Attributes:
        image_id: Unique in its dataset; an identifier from a DICOM file only as a salted hash.
        patient_id: Images with equal ``patient_id`` are always in the same split.
        split: ``train``, ``validation`` or ``test``.
        source: Name of the source that delivered it, such as ``nih_cxr14``.
        image: PNG file of 8-bit grey values; 0 is black (air is dark, bone is bright).
        height: Rows of the image [px].
        width: Columns of the image [px].
        pixel_spacing: Edge of a pixel after resizing [mm], or ``None`` where unknown.
        view: ``PA``, ``AP`` or another view of the source, or ``None``.
        sex: ``female``, ``male`` or ``None``.
        age: Age at the examination [years, 0 to 120], or ``None``.
        race: Self-reported race in the source's own words, or ``None``.
        group: A protected group that the source defines (the phantom's), or ``None``.
        site: Hospital or collection, or ``None``.
        scanner: Device that made the image, or ``None``.
        findings: For each of `FINDINGS`: 1 present, 0 absent, -1 uncertain, ``None`` not stated.
        measurements: Named numbers: areas [px^2 of this image], severities [0 to 1], and the like.
        masks: Named binary masks as 1-bit PNG files of the image's size.
        report: Free text of the report, or ``None``.
        refined_report: What a refiner kept of the report, or ``None``.
    """

    image_id: str
    patient_id: str
    split: str
    source: str
    image: bytes
    height: int
    width: int
    pixel_spacing: float | None = None
    view: str | None = None
    sex: str | None = None
    age: float | None = None
    race: str | None = None
    group: str | None = None
    site: str | None = None
    scanner: str | None = None
    findings: Mapping[str, int | None] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)
    masks: Mapping[str, bytes] = field(default_factory=dict)
    report: str | None = None
    refined_report: str | None = None

    def row(self) -> dict[str, Any]:
        """This study as a Python row of `ARROW_SCHEMA`."""
        row = {item.name: getattr(self, item.name) for item in fields(self)}
        row["findings"] = {name: self.findings.get(name) for name in FINDINGS}
        row["measurements"] = sorted(self.measurements.items())
        row["masks"] = sorted(self.masks.items())
        return row


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a training step sees. B images, F findings (in the order of ``finding_names``).

    Attributes:
        image: ``[B, 1, H, W]`` in [-1, 1].
        attributes: Name to ``[B]`` float: years for age, a code into the dataset's vocabulary for a
            categorical attribute; NaN where unknown.
        findings: ``[B, F]`` float labels.
        finding_mask: ``[B, F]`` bool, true where the label is known and counts.
        measurements: Name to ``[B]`` float64, NaN where unknown.
        masks: Name to ``[B, 1, H, W]`` float in {0, 1}; NaN throughout where an image has no such mask.
        reports: ``B`` report texts, empty where there is none.
        prompts: ``B`` refined reports, empty where there is none.
        tensors: Name to ``[B, ...]`` float: what an earlier job computed of each study, such as latents.
        image_ids: ``B`` identifiers of images.
        patient_ids: ``B`` identifiers of patients.
    """

    image: Tensor
    attributes: Mapping[str, Tensor]
    findings: Tensor
    finding_mask: Tensor
    finding_names: tuple[str, ...] = FINDINGS
    measurements: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    reports: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    image_ids: tuple[str, ...] = ()
    patient_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""

        def move(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device, non_blocking=True) for name, value in group.items()}

        return replace(
            self,
            image=self.image.to(device, non_blocking=True),
            attributes=move(self.attributes),
            findings=self.findings.to(device, non_blocking=True),
            finding_mask=self.finding_mask.to(device, non_blocking=True),
            measurements=move(self.measurements),
            masks=move(self.masks),
            tensors=move(self.tensors),
        )

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """One batch of all rows of ``parts``, at least one, which have the same fields.

        Texts and identifiers are kept where every part has them.
        """

        def joined(groups: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([group[name] for group in groups]) for name in groups[0]}

        def texts(groups: list[tuple[str, ...]]) -> tuple[str, ...]:
            return tuple(text for group in groups for text in group) if all(groups) else ()

        return replace(
            parts[0],
            image=torch.cat([part.image for part in parts]),
            attributes=joined([part.attributes for part in parts]),
            findings=torch.cat([part.findings for part in parts]),
            finding_mask=torch.cat([part.finding_mask for part in parts]),
            measurements=joined([part.measurements for part in parts]),
            masks=joined([part.masks for part in parts]),
            reports=texts([part.reports for part in parts]),
            prompts=texts([part.prompts for part in parts]),
            tensors=joined([part.tensors for part in parts]),
            image_ids=texts([part.image_ids for part in parts]),
            patient_ids=texts([part.patient_ids for part in parts]),
        )

    def without_pixels(self) -> Batch:
        """What is known of the images beside them: an ``image`` of ``[B, 1, 0, 0]``, no masks or tensors."""
        return replace(self, image=self.image.new_empty(len(self), 1, 0, 0), masks={}, tensors={})

    def select(self, index: Tensor) -> Batch:
        """The rows ``index`` (a long tensor ``[b]``) as a batch of their own."""

        def pick(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value[index] for name, value in group.items()}

        rows = index.tolist()
        return replace(
            self,
            image=self.image[index],
            attributes=pick(self.attributes),
            findings=self.findings[index],
            finding_mask=self.finding_mask[index],
            measurements=pick(self.measurements),
            masks=pick(self.masks),
            reports=tuple(self.reports[row] for row in rows) if self.reports else (),
            prompts=tuple(self.prompts[row] for row in rows) if self.prompts else (),
            tensors=pick(self.tensors),
            image_ids=tuple(self.image_ids[row] for row in rows) if self.image_ids else (),
            patient_ids=tuple(self.patient_ids[row] for row in rows) if self.patient_ids else (),
        )
