"""From stored scores to what the audits take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from counterray.audits.classifiers.thresholds import ThresholdConfig, chosen_threshold, given_threshold
from counterray.audits.dose_scores import DoseScores
from counterray.audits.errors import AuditError
from counterray.audits.scores import CounterfactualScores, Target
from counterray.data.study import UNITS
from counterray.evaluation.intervals import Floats
from counterray.storage import Location
from jobs.auditing.request import AuditJobConfig
from jobs.auditing.scoring import Candidate, read_scores
from jobs.auditing.sets import ImageSet, labels_of, own_doses, own_levels


@dataclass(frozen=True)
class Thresholds:
    """Where each target is cut.

    Attributes:
        targets: Classifier's name to its targets.
        refused: Target's name to why no threshold could be chosen.
    """

    targets: Mapping[str, list[Target]]
    refused: Mapping[str, str] = field(default_factory=dict)


def choose_thresholds(
    cache: Location, candidates: Sequence[Candidate], validation: ImageSet | None
) -> Thresholds:
    """The targets of each classifier, with thresholds as its settings say.

    Args:
        cache: Where scores are kept.
        candidates: The classifiers.
        validation: Scored validation studies; needed where a threshold is chosen by them.
    """
    targets: dict[str, list[Target]] = {}
    refused: dict[str, str] = {}
    for candidate in candidates:
        config, own = candidate.config.threshold, []
        scores = None
        if config.method != "given" and validation is not None:
            scores = read_scores(cache, candidate, validation)[0]
        for finding in candidate.audited:
            target = Target(classifier=candidate.name, finding=finding)
            try:
                cut = _threshold(target, candidate, scores, validation, config)
                own.append(replace(target, threshold=cut))
            except AuditError as error:
                refused[target.name] = str(error)
        targets[candidate.name] = own
    return Thresholds(targets, refused)


def _threshold(
    target: Target,
    candidate: Candidate,
    scores: Floats | None,
    validation: ImageSet | None,
    config: ThresholdConfig,
) -> float:
    if scores is None or validation is None:
        return given_threshold(config, target.finding)
    column = scores[:, candidate.findings.index(target.finding)]
    labels = labels_of(validation.studies, target.finding)
    return chosen_threshold(target.name, column, labels, config)


@dataclass(frozen=True)
class Assembled:
    """Scores of one attribute.

    Attributes:
        scores: Of all targets on the studies whose images are all there; `DoseScores` of a continuous
            attribute.
        kept: Positions of these studies in the set.
    """

    scores: CounterfactualScores | DoseScores
    kept: tuple[int, ...]


def assemble(
    cache: Location,
    candidates: Sequence[Candidate],
    targets: Mapping[str, Sequence[Target]],
    images: ImageSet,
    observed: ImageSet,
    *,
    whole: Sequence[int],
    config: AuditJobConfig,
) -> Assembled:
    """What classifiers said of the studies of one attribute.

    Args:
        cache: Where scores are kept.
        candidates: The classifiers whose scores are there.
        targets: Name of a classifier to its targets.
        images: Counterfactuals.
        observed: The studies' own images.
        whole: Positions in ``images.studies`` of the studies of which every image could be made.
        config: Of the audit.

    Raises:
        AuditError: If no target or study is left.
    """
    rows, flat = list(whole), [target for one in candidates for target in targets[one.name]]
    if not flat or not rows:
        raise AuditError(
            f"Attribute {images.views.attribute!r}: {len(flat)} targets and {len(rows)} studies are left to "
            "audit; one of each is needed. The reasons stand beside it."
        )
    views, studies = images.views, images.studies.take(rows)
    made = _scores_of(cache, candidates, targets, images, rows=rows)  # [T, N, V]
    intervened, nulled = made[..., : len(views.settings)], made[..., len(views.settings) :]
    patients = studies["patient_id"].to_pylist()
    if views.doses:
        doses = DoseScores(
            attribute=views.attribute,
            unit=UNITS[views.attribute],
            doses=views.doses,
            targets=flat,
            own=own_doses(studies, views.attribute),
            at_own=nulled[..., 0],
            intervened=intervened,
            placebo=nulled[..., 1:],
            patients=patients,
        )
        return Assembled(doses, tuple(rows))
    place = {number: row for row, number in enumerate(observed.studies["number"].to_pylist())}
    real = [place[number] for number in studies["number"].to_pylist()]
    scores = CounterfactualScores(
        attribute=views.attribute,
        levels=views.levels,
        targets=flat,
        observed=_scores_of(cache, candidates, targets, observed, rows=real)[..., 0],
        intervened=intervened,
        placebo=nulled,
        own=own_levels(studies, views.attribute, views.levels),
        labels=np.stack([labels_of(studies, target.finding) for target in flat]),
        patients=patients,
        effect=config.effect,
    )
    return Assembled(scores, tuple(rows))


def _scores_of(
    cache: Location,
    candidates: Sequence[Candidate],
    targets: Mapping[str, Sequence[Target]],
    images: ImageSet,
    *,
    rows: Sequence[int],
) -> Floats:
    """``[T, N, V]`` scores of all targets on the studies at ``rows``, in every view."""
    parts = []
    for candidate in candidates:
        columns = [candidate.findings.index(target.finding) for target in targets[candidate.name]]
        parts.append(np.moveaxis(read_scores(cache, candidate, images)[:, rows][..., columns], 2, 0))
    return np.moveaxis(np.concatenate(parts), 1, -1)
