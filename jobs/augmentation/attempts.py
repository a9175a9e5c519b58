"""Attempts at a synthetic study: a patient without a finding is given it, and judges look at the result."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from counterray.bundle import Bundle
from counterray.data.chunks import study_digest
from counterray.data.dataset import Dataset
from counterray.data.pixels import encode
from counterray.data.study import ARROW_SCHEMA, Study
from counterray.data.synthetic_png import to_grey
from counterray.evaluation.features import extract_features, feature_judge
from counterray.evaluation.judge import open_judge
from counterray.evaluation.metric import Judge
from counterray.models.generator import PREFIX, Generator, image_seed
from counterray.storage import Location, publish
from jobs.augmentation.gate import GATE_FILE, Gate, no_gate, read_gate
from jobs.augmentation.request import AugmentConfig
from jobs.generation.chunks import opened, parquet, seeds_of
from jobs.generation.editing import Refusal, edit_rows
from jobs.generation.request import GenerationError
from jobs.generation.selection import as_batch, list_studies, read_rows

ATTEMPTS_FILE = "attempts.parquet"
"""Written last: a chunk's folder counts once it is there."""

STUDIES_FILE = "studies.parquet"

ATTEMPT_SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("source_image_id", pa.string(), nullable=False),
        pa.field("finding", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("probability", pa.float64()),
        pa.field("distance", pa.float64()),
        pa.field("pixels", pa.binary(32)),
        pa.field("bundle", pa.string(), nullable=False),
        pa.field("code_version", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""One attempt: what it was made from, what the judges said, and why it was rejected, where it was."""


@dataclass(frozen=True)
class AttemptChunk:
    """Attempts for one finding that are made and published together.

    Attributes:
        finding: Such as ``finding.edema``.
        number: Number of the chunk for its finding, from 0.
        items: A row for each attempt: ``selection.STUDY_SCHEMA``, ``number`` and ``sample``.
    """

    finding: str
    number: int
    items: pa.Table

    @property
    def folder(self) -> str:
        """The chunk's folder below that of the request."""
        return f"attempts/{self.finding.removeprefix(PREFIX)}/{self.number:05d}"


def candidates(dataset: Dataset, finding: str, seed: int) -> pa.Table:
    """Training studies whose label says that they do not show the finding, in a random order.

    Raises:
        GenerationError: If there is none.
    """
    studies = list_studies(dataset, "train", columns=["findings"])
    labels = pc.struct_field(studies["findings"], finding.removeprefix(PREFIX))
    healthy = studies.filter(pc.equal(labels, 0)).drop_columns(["findings"])
    if not len(healthy):
        raise GenerationError(
            f"No training study of {dataset.location.uri} is known to be without {finding}, so none can be "
            "given it. Leave it out of --target."
        )
    keys = [image_seed(seed, f"{finding}\0{image_id}", 0) for image_id in healthy["image_id"].to_pylist()]
    return healthy.take(pa.array(np.argsort(np.array(keys, np.int64), kind="stable")))


def attempt_chunk(healthy: pa.Table, finding: str, number: int, *, images: int) -> AttemptChunk:
    """Chunk ``number`` of a finding: every candidate is used once before one is used again."""
    wanted = np.arange(number * images, (number + 1) * images)
    items = healthy.take(pa.array(wanted % len(healthy)))
    items = items.append_column("number", pa.array(wanted))
    items = items.append_column("sample", pa.array((wanted // len(healthy)).astype(np.int32)))
    return AttemptChunk(finding, number, items)


def judged(probability: float, distance: float, *, threshold: float, nearest: float) -> Refusal | None:
    """Why an image is rejected, ``None`` where it passes.

    Args:
        probability: The judge's, of the finding.
        distance: To the nearest training image of another patient.
        threshold: Probability that is needed.
        nearest: Distance that is needed.
    """
    if probability < threshold:
        return Refusal("not_shown", f"the judge's probability is {probability:.3f}, below {threshold:g}")
    if distance < nearest:
        return Refusal(
            "near_copy", f"distance {distance:.4g} to another patient's image, below {nearest:.4g}"
        )
    return None


@dataclass
class AttemptMaker:
    """Makes attempts and lets the judges look at them; opens its networks where it is first called.

    Attributes:
        bundle: The generator's.
        judge: Says whether the finding is there.
        near_judge: Gives the features by which near copies are told.
        dataset: Whose training studies are edited.
        target: The request's folder.
        config: The request's settings.
        request: The request's checksum.
        code_version: Of the run.
    """

    bundle: Bundle
    judge: Bundle
    near_judge: Bundle
    dataset: Dataset
    target: Location
    config: AugmentConfig
    request: str
    code_version: str
    generator: Generator = field(init=False)
    scorer: Judge = field(init=False)
    comparer: Judge = field(init=False)
    gate: Gate = field(init=False)

    def open(self) -> AttemptMaker:
        """Opens generator, judges and gate.

        Raises:
            EditError: If the generator does not know a finding.
        """
        self.generator = opened(self.bundle, self.dataset, self.config)
        for finding in self.config.targets:
            self.config.edit(finding).require(self.generator.finding_names)
        self.scorer = open_judge(self.judge)
        self.gate = no_gate()
        if self.config.near_copy_percentile:
            self.comparer, self.gate = feature_judge(self.near_judge), read_gate(self.target / GATE_FILE)
        return self

    def __call__(self, chunk: AttemptChunk) -> tuple[str, int, pa.Table]:
        """Makes and publishes a chunk; returns its finding, its number, and rows of `ATTEMPT_SCHEMA`."""
        table = read_rows(self.dataset, chunk.items, ARROW_SCHEMA.names)
        batch = as_batch(self.dataset, table)
        seeds = seeds_of(chunk.items, self.config.seed)
        edited = edit_rows(
            self.generator,
            batch,
            self.config.edit(chunk.finding),
            seeds=seeds,
            batch_size=self.config.batch_size,
        )
        image = edited.image.nan_to_num()
        name = chunk.finding.removeprefix(PREFIX)
        probability = self.scorer.scores(image)[:, self.scorer.columns((name,))].flatten()
        features = extract_features(self.comparer, image) if self.gate.threshold else image.flatten(1)
        distance = self.gate.distance(features, batch.patient_ids)
        attempts, studies = [], []
        for row, (item, source) in enumerate(zip(chunk.items.to_pylist(), table.to_pylist(), strict=True)):
            refusal = edited.refusals.get(row) or judged(
                float(probability[row]),
                float(distance[row]),
                threshold=self.config.threshold,
                nearest=self.gate.threshold,
            )
            said = {**self._facts(chunk, item), "seed": int(seeds[row])}
            if row not in edited.refusals:
                said |= {"probability": float(probability[row]), "distance": float(distance[row])}
            if refusal is None:
                png = encode(to_grey(edited.image[row], 8).astype(np.uint8))
                study = self._study(said["image_id"], source, name, png)
                said["pixels"] = study_digest(study)[0]
                studies.append(study.row())
            else:
                said |= vars(refusal)
            attempts.append(said)
        rows = pa.Table.from_pylist(attempts, ATTEMPT_SCHEMA)
        with publish(self.target / chunk.folder, last=ATTEMPTS_FILE) as staging:
            (staging / STUDIES_FILE).write_bytes(parquet(pa.Table.from_pylist(studies, ARROW_SCHEMA)))
            (staging / ATTEMPTS_FILE).write_bytes(parquet(rows))
        return chunk.finding, chunk.number, rows

    def _facts(self, chunk: AttemptChunk, item: Mapping[str, Any]) -> dict[str, Any]:
        identity = f"{self.request}\0{chunk.finding}\0{item['image_id']}\0{item['sample']}"
        return {
            "number": item["number"],
            "image_id": f"synthetic-{hashlib.sha256(identity.encode()).hexdigest()[:24]}",
            "source_image_id": item["image_id"],
            "finding": chunk.finding,
            "sample": item["sample"],
            "bundle": self.bundle.checksum,
            "code_version": self.code_version,
        }

    def _study(self, image_id: str, source: Mapping[str, Any], finding: str, png: bytes) -> Study:
        """The source's study with another image; what was measured or written of the old one is dropped."""
        findings = {**source["findings"], finding: 1}
        if findings["no_finding"] is not None and finding != "support_devices":  # devices are no disease
            findings["no_finding"] = 0
        kept = {
            name: source[name]
            for name in (
                *("patient_id", "split", "height", "width", "pixel_spacing", "view", "sex", "age", "race"),
                *("group", "site", "scanner"),
            )
        }
        return Study(
            **kept, image_id=image_id, source=f"synthetic:{self.bundle.stage}", image=png, findings=findings
        )
