"""The readings of an audit's gates, from what judges said of its images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterray.audits.clustered import ClusteredMeans
from counterray.audits.equivalence import rate_interval
from counterray.audits.errors import Codes
from counterray.audits.gates import GateName, Reading
from counterray.evaluation.auroc import auroc, concordance
from counterray.evaluation.intervals import Floats, patient_bootstrap
from jobs.auditing.sets import ImageSet, own_doses, own_levels
from jobs.auditing.views import Views


def gate_readings(
    words: Mapping[str, Floats],
    images: ImageSet,
    labels: Mapping[str, str],
    *,
    findings: Sequence[str],
    kept: Sequence[int],
) -> list[Reading]:
    """What the gates take: of each the worst over the levels or doses that were set, and over findings.

    Args:
        words: From `read_judged`.
        images: Of the attribute.
        labels: Stage to the judge's label.
        findings: What the judge of findings tells.
        kept: Positions of the studies that are audited.
    """
    views = images.views
    rows = np.asarray(kept)
    own = _own(images)[rows]
    names = [images.studies["patient_id"][row].as_py() for row in kept]
    patients = np.unique(names, return_inverse=True)[1].astype(np.int64)
    said = {name: values[:, rows] for name, values in words.items()}
    settings = list(views.settings.values())
    composition = said["composition"]
    null = composition[-1] if views.doses else np.take_along_axis(composition[1:], own[None], axis=0)[0]
    # Whom a setting changes at all: those who have another one.
    moved_to = np.array([own != (value if views.doses else k) for k, value in enumerate(settings)])
    readings = [_reading("composition", null, patients)]

    def worst(gate: GateName, values: Floats, stage: str, *, higher: bool = False, what: str = "") -> Reading:
        """The worst mean over settings, each of the studies that have another one."""
        found = [values[k + 1][others] for k, others in enumerate(moved_to)]
        means = [float(each.mean()) for each in found]
        place = int(np.argmin(means) if higher else np.argmax(means))
        at = settings[place] if views.levels else f"{settings[place]:g}"
        note = f"{what}worst at {at}"
        return _reading(gate, found[place], patients[moved_to[place]], judge=labels[stage], note=note)

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
        read, stage = said["read"], "regressor" if views.doses else "demographic"
        readings.append(worst("effectiveness", _read_right(read, views), stage, higher=True))
        judge = labels[stage]
        readings.append(
            _dose_judge_reading(read[0, :, 0], own, names, judge)
            if views.doses
            else _judge_reading(read[0], own, views.levels, names, judge)
        )
    return readings


def _own(images: ImageSet) -> NDArray[Any]:
    """``[N]`` position of each study's own level, or its own dose."""
    views = images.views
    if views.doses:
        return own_doses(images.studies, views.attribute)
    return own_levels(images.studies, views.attribute, views.levels)


def _read_right(read: Floats, views: Views) -> Floats:
    """Whether a judge reads what was asked for, ``[V, N]`` in {0, 1}; of the first row, observed, it is 0.

    Args:
        read: ``[V, N, K]`` probabilities of levels: the largest is read. ``[V, N, 1]`` numbers: the nearest
            of the doses is read, so that doses closer than the judge's error are asked too much of it.
        views: What was asked for.
    """
    found = np.abs(read - np.array(views.doses)).argmin(axis=-1) if views.doses else read.argmax(axis=-1)
    asked = np.arange(len(read))[:, None] - 1
    return np.asarray(found == asked, dtype=np.float64)


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


def _dose_judge_reading(read: Floats, own: Floats, patients: Sequence[str], judge: str) -> Reading:
    """How often the judge orders two observed images rightly: of a number what the AUROC is of a level."""

    def rate(rows: Codes) -> Floats:
        return np.array([concordance(read[rows], own[rows])])

    [interval] = patient_bootstrap(rate, patients)
    return Reading(
        gate="judge_auroc",
        value=float(rate(np.arange(len(own)))[0]),
        low=interval.low,
        high=interval.high,
        images=len(own),
        judge=judge,
        note="share of pairs of observed images that it orders rightly",
    )
