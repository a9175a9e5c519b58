"""What judges say of a chunk's counterfactuals, and the readings of the gates that come of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from counterray.audits.clustered import ClusteredMeans
from counterray.audits.equivalence import rate_interval
from counterray.audits.errors import Codes
from counterray.audits.gates import GateName, Reading
from counterray.bundle import Bundle, BundleError
from counterray.evaluation.auroc import auroc
from counterray.evaluation.intervals import Floats, patient_bootstrap
from counterray.evaluation.judge import demographic_judges, open_judge
from counterray.evaluation.metric import Judge
from counterray.evaluation.pixel_error import mean_absolute_error
from counterray.storage import Location
from jobs.auditing.making import Source
from jobs.auditing.sets import ImageSet, SetChunk, Views, own_levels
from jobs.generation.chunks import parquet, read_parquet
from jobs.generation.selection import read_batch

JUDGES = ("demographic", "classifier", "identity_encoder")
"""Stages of bundles that measure gates: the level that is read, findings that should stay, identity."""

JUDGED_SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("view", pa.string(), nullable=False),
        pa.field("composition", pa.float64()),
        pa.field("identity", pa.float64()),
        pa.field("findings", pa.list_(pa.float64())),
        pa.field("others", pa.float64()),
        pa.field("read", pa.list_(pa.float64())),
    ]
)
"""Of a study's view: distance from the observed image, likeness of identity to it, change of each finding and
of other attributes from the null intervention, and the probabilities read of the attribute's levels. Null
where no judge was there to say it."""


@dataclass
class Jury:
    """The judges of an audit; opens them in the process that first asks.

    Attributes:
        bundles: Stage to bundle.
        source: Where the images are.
    """

    bundles: Mapping[str, Bundle]
    source: Source
    _judges: dict[str, Judge] = field(default_factory=dict, init=False, repr=False)
    _attributes: dict[str, Judge] = field(default_factory=dict, init=False, repr=False)
    _is_open: bool = field(default=False, init=False)

    def open(self) -> Jury:
        """Opens the judges.

        Raises:
            BundleError: If the levels that one reads, or the size of its images, are others than the data's.
        """
        if self._is_open:
            return self
        manifest = self.source.dataset.manifest
        for stage, bundle in self.bundles.items():
            size = int(bundle.metadata["image_size"])
            if size != manifest.image_size:
                raise BundleError(
                    f"--judge {bundle.location.uri} reads images of {size} px; those of the data have "
                    f"{manifest.image_size} px. Train it on data of their size."
                )
            if stage != "demographic":
                self._judges[stage] = open_judge(bundle)
                continue
            for attribute, judge in demographic_judges(bundle).items():
                there = tuple(manifest.vocabulary.get(attribute, ()))
                if tuple(judge.outputs) != there:
                    raise BundleError(
                        f"--judge {bundle.location.uri} reads the levels {', '.join(judge.outputs)} of "
                        f"{attribute}; the data have {', '.join(there) or 'none'}. Train it on such data."
                    )
                self._attributes[attribute] = judge
        self._is_open = True
        return self

    def place(self, chunk: SetChunk) -> Location:
        """Where the words on a chunk are kept."""
        sums = "-".join(sorted(bundle.checksum[:12] for bundle in self.bundles.values())) or "none"
        return self.source.cache / f"judged/{sums}/{chunk.name}.parquet"

    def __call__(self, chunk: SetChunk) -> int:
        """Judges a chunk; returns the number of its rows."""
        self.open()
        batch, views = read_batch(self.source.dataset, chunk.studies), chunk.views
        vocabulary = self.source.dataset.manifest.vocabulary[views.attribute]
        codes = batch.attributes[views.attribute].long().tolist()
        own = torch.tensor([views.levels.index(vocabulary[code]) for code in codes])
        made = self.source.read(chunk)
        levels = torch.stack([made[f"level{k}"] for k in range(len(views.levels))])
        null = levels[own, torch.arange(len(own))]
        rows: list[dict[str, Any]] = []
        for k in range(-1, len(views.levels)):
            image = batch.image if k < 0 else levels[k]
            said = judged(self._judges, self._attributes, image, views=views, observed=batch.image, null=null)
            for row, number in enumerate(chunk.studies["number"].to_pylist()):
                one = {name: values[row].tolist() for name, values in said.items()}
                rows.append({"number": number, "view": "observed" if k < 0 else f"level{k}", **one})
        self.place(chunk).write_bytes(parquet(pa.Table.from_pylist(rows, JUDGED_SCHEMA)))
        return len(rows)

    def labels(self) -> dict[str, str]:
        """Stage to the judge's name and short checksum."""
        return {stage: f"{stage}:{bundle.checksum[:8]}" for stage, bundle in self.bundles.items()}

    def findings(self) -> tuple[str, ...]:
        """What the judge of findings tells; nothing without one."""
        judge = self.open()._judges.get("classifier")
        return () if judge is None else tuple(judge.outputs)


def judged(
    judges: Mapping[str, Judge],
    attributes: Mapping[str, Judge],
    image: Tensor,
    *,
    views: Views,
    observed: Tensor,
    null: Tensor,
) -> dict[str, Tensor]:
    """What judges say of images ``[N, 1, S, S]``, for `gate_readings`; nothing of judges that are not there.

    Args:
        judges: ``classifier`` and ``identity_encoder``.
        attributes: Attribute to its judge.
        image: Observed images, or those at one level.
        views: Of the attribute that is audited.
        observed: What was observed of each row.
        null: The image at each row's own level.

    Returns:
        Column of `JUDGED_SCHEMA` to float64 values ``[N]``; ``findings`` ``[N, F]``; ``read`` ``[N, K]``.
    """
    said = {"composition": mean_absolute_error(image, observed)}
    if "identity_encoder" in judges:
        identity = judges["identity_encoder"]
        said["identity"] = cosine_similarity(identity.scores(image), identity.scores(observed))
    if "classifier" in judges:
        moved = judges["classifier"].scores(image) - judges["classifier"].scores(null)
        said["findings"] = moved.abs()
    others = [
        0.5 * (judge.scores(image) - judge.scores(null)).abs().sum(dim=1)
        for name, judge in attributes.items()
        if name != views.attribute
    ]
    if others:
        said["others"] = torch.stack(others).amax(dim=0)
    if views.attribute in attributes:
        reading = attributes[views.attribute]
        columns = [reading.outputs.index(level) for level in views.levels]
        said["read"] = reading.scores(image)[:, columns]
    return {name: values.double().cpu() for name, values in said.items()}


def read_judged(jury: Jury, images: ImageSet) -> dict[str, Floats]:
    """Column to values ``[K + 1, N]``, the observed images first; a list has one more dimension.

    Columns that no judge filled are left out.
    """
    names = ["observed", *(f"level{k}" for k in range(len(images.views.levels)))]
    tables = [read_parquet(jury.place(chunk), JUDGED_SCHEMA).to_pylist() for chunk in images.chunks]
    rows = {(row["view"], row["number"]): row for table in tables for row in table}
    numbers = images.studies["number"].to_pylist()
    found = {}
    for column in ("composition", "identity", "findings", "others", "read"):
        values = [[rows[view, number][column] for number in numbers] for view in names]
        if values[0][0] is not None:
            found[column] = np.array(values, dtype=np.float64)
    return found


def gate_readings(
    words: Mapping[str, Floats],
    images: ImageSet,
    labels: Mapping[str, str],
    *,
    findings: Sequence[str],
    kept: Sequence[int],
) -> list[Reading]:
    """What the gates take: of each the worst over the levels that were set, and over findings.

    Args:
        words: From `read_judged`.
        images: Of the attribute.
        labels: Stage to the judge's label.
        findings: What the judge of findings tells.
        kept: Positions of the studies that are audited.
    """
    views = images.views
    rows = np.asarray(kept)
    own = own_levels(images.studies, views.attribute, views.levels)[rows]
    names = [images.studies["patient_id"][row].as_py() for row in kept]
    patients = np.unique(names, return_inverse=True)[1].astype(np.int64)
    said = {name: values[:, rows] for name, values in words.items()}
    null = np.take_along_axis(said["composition"][1:], own[None], axis=0)[0]
    readings = [_reading("composition", null, patients)]

    def worst(gate: GateName, values: Floats, stage: str, *, higher: bool = False, what: str = "") -> Reading:
        """The worst mean over levels, each of the studies that have another one."""
        found = [values[k + 1][own != k] for k in range(len(views.levels))]
        means = [float(each.mean()) for each in found]
        place = int(np.argmin(means) if higher else np.argmax(means))
        note = f"{what}worst at {views.levels[place]}"
        return _reading(gate, found[place], patients[own != place], judge=labels[stage], note=note)

    if "identity" in said:
        readings.append(worst("identity", said["identity"], "identity_encoder", higher=True))
    # Findings are what an effect would be mistaken for: without their judge the gate is not measured.
    if "findings" in said:
        moved = [
            worst("off_target", said["findings"][..., place], "classifier", what=f"{finding}, ")
            for place, finding in enumerate(findings)
        ]
        if "others" in said:
            moved.append(worst("off_target", said["others"], "demographic", what="other attributes, "))
        readings.append(max(moved, key=lambda reading: reading.value))
    if "read" in said:
        read = said["read"]
        right = np.stack([read[k].argmax(axis=1) == k - 1 for k in range(len(read))]).astype(float)
        readings.append(worst("effectiveness", right, "demographic", higher=True))
        readings.append(_judge_reading(read[0], own, views.levels, names, labels["demographic"]))
    return readings


def _reading(
    gate: GateName, values: Floats, patients: Codes, *, judge: str | None = None, note: str = ""
) -> Reading:
    """The mean over images with its interval by patients; that of a rate of zeros and ones is exact."""
    value, low, high = float(values.mean()), math.nan, math.nan
    units = np.unique(patients, return_inverse=True)[1].astype(np.int64)
    if units.max() > 0:
        means = ClusteredMeans.of(values, units)
        ends = rate_interval(means) if gate == "effectiveness" else means.interval()
        low, high = (float(end) for end in ends)
    return Reading(gate=gate, value=value, low=low, high=high, images=len(values), judge=judge, note=note)


def _judge_reading(
    read: Floats, own: Codes, levels: Sequence[str], patients: Sequence[str], judge: str
) -> Reading:
    """The worst AUROC of the attribute's judge over levels, each against the rest, on observed images."""

    def areas(rows: Codes) -> Floats:
        return np.array([auroc(read[rows, k], own[rows] == k) for k in range(len(levels))])

    found = areas(np.arange(len(own)))
    place = int(np.argmin(found))
    interval = patient_bootstrap(areas, patients)[place]
    return Reading(
        gate="judge_auroc",
        value=float(found[place]),
        low=interval.low,
        high=interval.high,
        images=len(own),
        judge=judge,
        note=f"{levels[place]} against the rest, on the observed images",
    )
