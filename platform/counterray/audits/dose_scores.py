"""`DoseScores`: what classifiers said of individuals at several doses of a continuous attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from counterray.audits.errors import AuditError, Codes, encoded_patients
from counterray.audits.scores import PlaceboUnit, Target, check_shapes, check_target
from counterray.evaluation.intervals import Floats


@dataclass(frozen=True, kw_only=True)
class DoseScores:
    """Scores of T targets on N individuals under D doses of a continuous attribute.

    Attributes:
        attribute: Its name, such as ``age``.
        unit: Its unit, such as ``years``.
        doses: The D doses, ascending.
        targets: The T targets.
        own: ``[N]`` observed dose of each individual.
        at_own: ``[T, N]`` scores of images generated at the own dose: a null intervention.
        intervened: ``[T, N, D]`` scores at each dose.
        placebo: ``[T, N, R]`` scores of more null interventions.
        patients: The patient of each individual.
        placebo_unit: What the null interventions are.

    Raises:
        AuditError: If shapes do not fit each other; see also `problems` and `checked`.
    """

    attribute: str
    unit: str
    doses: Sequence[float]
    targets: Sequence[Target]
    own: Floats
    at_own: Floats
    intervened: Floats
    placebo: Floats
    patients: Sequence[str]
    placebo_unit: PlaceboUnit = "individual"

    def __post_init__(self) -> None:
        size = (len(self.targets), len(self.patients))
        check_shapes(
            {
                "own": (np.asarray(self.own), size[1:]),
                "at_own": (self.at_own, size),
                "intervened": (self.intervened, (*size, len(self.doses))),
                "placebo": (self.placebo, (*size, self.placebo.shape[-1])),
            },
            f"{size[0]} targets, {size[1]} individuals and {len(self.doses)} doses of {self.attribute!r}",
        )

    def __len__(self) -> int:
        """N, the number of individuals."""
        return len(self.patients)

    def select(self, targets: Sequence[int]) -> DoseScores:
        """The same individuals with some of the targets."""
        rows = list(targets)
        return replace(
            self,
            targets=[self.targets[row] for row in rows],
            at_own=self.at_own[rows],
            intervened=self.intervened[rows],
            placebo=self.placebo[rows],
        )

    def checked(self, *, minimum_patients: int) -> Codes:
        """Patients as numbers, once what all targets share is known to be usable.

        Raises:
            AuditError: If the doses cannot be followed, an own dose is no number, or there are too few
                patients.
        """
        check_doses(self.attribute, self.doses)
        unknown = int((~np.isfinite(self.own)).sum())
        if unknown:
            raise AuditError(
                f"Attribute {self.attribute!r}: {unknown} own doses are no finite numbers; leave out these "
                "individuals."
            )
        return check_patients(self.attribute, self.patients, minimum_patients=minimum_patients)

    def problems(self) -> dict[int, str]:
        """Position of each target that cannot be audited to the reason; the others can go on."""
        found = {}
        for row, target in enumerate(self.targets):
            scores = {name: getattr(self, name)[row] for name in ("at_own", "intervened", "placebo")}
            try:
                check_target(target, scores, settings="doses")
            except AuditError as error:
                found[row] = str(error)
        return found


def check_doses(attribute: str, doses: Sequence[float]) -> None:
    """Checks that there is something to follow.

    Raises:
        AuditError: If there are not two or more doses, finite and ascending.
    """
    values = np.asarray(doses, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all() or not (np.diff(values) > 0).all():
        raise AuditError(
            f"doses.{attribute} = [{', '.join(f'{dose:g}' for dose in doses)}]: a response needs two or more "
            "doses, ascending, such as [40, 60, 80]."
        )


def check_patients(
    attribute: str, patients: Sequence[str], *, minimum_patients: int, setting: str = "minimum_patients"
) -> Codes:
    """Patients ``[N]`` as numbers, where there are enough of them.

    Raises:
        AuditError: If there are not.
    """
    codes = encoded_patients(patients, size=len(patients))
    found = int(codes.max()) + 1
    if found < minimum_patients:
        raise AuditError(
            f"Attribute {attribute!r}: {found} patients; {setting} = {minimum_patients} are needed. Add "
            f"patients, or lower {setting}."
        )
    return codes
