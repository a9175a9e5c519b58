"""`CounterfactualScores`: what classifiers said of individuals as they are and as they would have been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from counterray.audits.errors import (
    AuditError,
    Codes,
    checked_groups,
    checked_labels,
    checked_scores,
    encoded_patients,
)
from counterray.evaluation.intervals import Floats

PlaceboUnit = Literal["individual", "generator"]
"""What is exchangeable with a real intervention under the null: each individual's own null interventions
(another draw of the same generator), or whole null generators (each trained on shuffled levels of the
attribute, so that its errors are shared by all individuals)."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one verdict is about: one output of one classifier.

    Attributes:
        classifier: Its name.
        finding: The output's name.
        threshold: Score from which the finding is called; a probability.
    """

    classifier: str
    finding: str
    threshold: float = 0.5

    @property
    def name(self) -> str:
        """For messages and tables."""
        return f"{self.classifier}, {self.finding}"


@dataclass(frozen=True, kw_only=True)
class CounterfactualScores:
    """Scores of T targets on N individuals, observed and under interventions on one attribute of K levels.

    Attributes:
        attribute: Name of the attribute, such as ``sex``.
        levels: Names of the K levels.
        targets: The T targets.
        observed: ``[T, N]`` scores of the observed images, in [0, 1].
        intervened: ``[T, N, K]`` scores of the images with the attribute set to each level. At an
            individual's own level the image is generated too, by the same path, so that an effect is never
            confused with the generator's reconstruction error.
        placebo: ``[T, N, R]`` scores of R null interventions on each individual, see `PlaceboUnit`; for a
            generator without randomness its one reconstruction, R = 1.
        own: ``[N]`` position of each individual's observed level.
        labels: ``[T, N]`` truth of each target's finding: 0, 1 or NaN for unknown.
        patients: The patient of each individual.
        placebo_unit: What the null interventions are.
        effect: ``total`` if descendants of the attribute were updated, ``direct`` if they were held.

    Raises:
        AuditError: If shapes do not fit each other; see also `problems` and `checked`.
    """

    attribute: str
    levels: Sequence[str]
    targets: Sequence[Target]
    observed: Floats
    intervened: Floats
    placebo: Floats
    own: Codes
    labels: Floats
    patients: Sequence[str]
    placebo_unit: PlaceboUnit = "individual"
    effect: Literal["total", "direct"] = "total"

    def __post_init__(self) -> None:
        size = (len(self.targets), len(self.patients))
        check_shapes(
            {
                "observed": (self.observed, size),
                "intervened": (self.intervened, (*size, len(self.levels))),
                "labels": (self.labels, size),
                "placebo": (self.placebo, (*size, self.placebo.shape[-1])),
            },
            f"{size[0]} targets, {size[1]} individuals and {len(self.levels)} levels of {self.attribute!r}",
        )

    def __len__(self) -> int:
        """N, the number of individuals."""
        return len(self.patients)

    def select(self, targets: Sequence[int]) -> CounterfactualScores:
        """The same individuals with some of the targets."""
        rows = list(targets)
        return replace(
            self,
            targets=[self.targets[row] for row in rows],
            observed=self.observed[rows],
            intervened=self.intervened[rows],
            placebo=self.placebo[rows],
            labels=self.labels[rows],
        )

    def checked(self, *, minimum_patients: int) -> Codes:
        """Patients as numbers, once what all targets share is known to be usable.

        Raises:
            AuditError: If the attribute has one level, or a level or the whole too few patients.
        """
        patients = encoded_patients(self.patients, size=len(self))
        checked_groups(self.attribute, self.own, self.levels, patients, minimum_patients=minimum_patients)
        return patients

    def problems(self) -> dict[int, str]:
        """Position of each target that cannot be audited to the reason; the others can go on."""
        found = {}
        for row, target in enumerate(self.targets):
            try:
                self._check_target(row, target)
            except AuditError as error:
                found[row] = str(error)
        return found

    def _check_target(self, row: int, target: Target) -> None:
        names = ("observed", "intervened", "placebo")
        check_target(target, {name: getattr(self, name)[row] for name in names}, settings="levels")
        checked_labels(f"{target.name}: labels", self.labels[row], self.labels[row].shape)


def check_shapes(given: Mapping[str, tuple[Floats, tuple[int, ...]]], about: str) -> None:
    """Checks what scores were given, ``placebo`` among them.

    Args:
        given: Name to values and the shape that they need.
        about: For whom the shapes are, for the message.

    Raises:
        AuditError: If a shape is another, or there is no null intervention.
    """
    for name, (values, needed) in given.items():
        if values.shape != needed:
            raise AuditError(f"{name} has shape {values.shape}; {needed} is needed for {about}.")
    if not given["placebo"][0].shape[-1]:
        raise AuditError("placebo holds no null intervention; one for each individual is needed.")


def check_target(target: Target, scores: Mapping[str, Floats], *, settings: str) -> None:
    """Checks that one target can be audited.

    Args:
        target: Which one.
        scores: Name to its scores ``[N, ...]``.
        settings: What the attribute was set to, for the message: ``levels`` or ``doses``.

    Raises:
        AuditError: If a score is no number in [0, 1], the threshold calls all or nothing, or the score is the
            same for everyone everywhere; null interventions do not count.
    """
    for name, values in scores.items():
        checked_scores(f"{target.name}: {name} scores", values, values.shape)
    if not 0 < target.threshold < 1:
        raise AuditError(
            f"{target.name}: threshold = {target.threshold:g} calls all or nothing; give one between 0 and 1."
        )
    found = np.concatenate([values.ravel() for name, values in scores.items() if name != "placebo"])
    if np.ptp(found) == 0:
        size = len(next(iter(scores.values())))
        raise AuditError(
            f"{target.name}: the score is {found[0]:g} for all {size} individuals at all {settings}; two "
            "different scores are needed. A constant leans on nothing and tells nothing: look at the "
            "adapter's choice of output and its preprocessing, or leave this target out."
        )
