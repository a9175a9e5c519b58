"""What judges say of a chunk's counterfactuals, kept for the gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from counterray.bundle import Bundle, BundleError
from counterray.evaluation.intervals import Floats
from counterray.evaluation.judge import demographic_judges, open_judge
from counterray.evaluation.metric import Judge
from counterray.evaluation.pixel_error import mean_absolute_error
from counterray.storage import Location
from jobs.auditing.making import Source
from jobs.auditing.sets import ImageSet, SetChunk
from jobs.auditing.views import Views
from jobs.generation.chunks import parquet, read_parquet
from jobs.generation.selection import read_batch

JUDGES = ("demographic", "regressor", "classifier", "identity_encoder")
"""Stages of bundles that measure gates: the level or the dose that is read, findings that should stay,
identity."""

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
of other attributes from the null intervention, and what is read of the attribute: the probabilities of its
levels, or its dose. Null where no judge was there to say it."""


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
        made = {"observed": batch.image, **self.source.read(chunk)}
        null = _at_own(made, views, self.source.own_settings(batch, views.attribute))
        rows: list[dict[str, Any]] = []
        for view in views.judged:
            said = judged(
                self._judges, self._attributes, made[view], views=views, observed=batch.image, null=null
            )
            for row, number in enumerate(chunk.studies["number"].to_pylist()):
                one = {name: values[row].tolist() for name, values in said.items()}
                rows.append({"number": number, "view": view, **one})
        self.place(chunk).write_bytes(parquet(pa.Table.from_pylist(rows, JUDGED_SCHEMA)))
        return len(rows)

    def labels(self) -> dict[str, str]:
        """Stage to the judge's name and short checksum."""
        return {stage: f"{stage}:{bundle.checksum[:8]}" for stage, bundle in self.bundles.items()}

    def findings(self) -> tuple[str, ...]:
        """What the judge of findings tells; nothing without one."""
        judge = self.open()._judges.get("classifier")
        return () if judge is None else tuple(judge.outputs)


def _at_own(made: Mapping[str, Tensor], views: Views, own: NDArray[Any]) -> Tensor:
    """The image ``[N, 1, S, S]`` of each study at its own level or dose, by the path of the settings."""
    if views.doses:
        return made["own"]
    null = torch.empty_like(made["observed"])
    for view, level in views.settings.items():
        there = torch.from_numpy(np.flatnonzero(own == level))
        null[there] = made[view][there]
    return null


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
        judges: ``classifier``, ``identity_encoder`` and ``regressor``.
        attributes: Attribute to its judge.
        image: Observed images, or those at one level or dose.
        views: Of the attribute that is audited.
        observed: What was observed of each row.
        null: The image at each row's own level or dose.

    Returns:
        Column of `JUDGED_SCHEMA` to float64 values ``[N]``; ``findings`` ``[N, F]``; ``read``
        ``[N, K]`` of levels, ``[N, 1]`` of doses.
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
    elif "regressor" in judges and views.attribute in judges["regressor"].outputs:
        reading = judges["regressor"]
        said["read"] = reading.scores(image)[:, reading.columns((views.attribute,))]
    return {name: values.double().cpu() for name, values in said.items()}


def read_judged(jury: Jury, images: ImageSet) -> dict[str, Floats]:
    """Column to values of `Views.judged` and studies ``[V, N]``; a list has one more dimension.

    Columns that no judge filled are left out.
    """
    names = images.views.judged
    tables = [read_parquet(jury.place(chunk), JUDGED_SCHEMA).to_pylist() for chunk in images.chunks]
    rows = {(row["view"], row["number"]): row for table in tables for row in table}
    numbers = images.studies["number"].to_pylist()
    found = {}
    for column in ("composition", "identity", "findings", "others", "read"):
        values = [[rows[view, number][column] for number in numbers] for view in names]
        if values[0][0] is not None:
            found[column] = np.array(values, dtype=np.float64)
    return found
