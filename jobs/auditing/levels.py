"""Levels that have patients enough to be compared; one that has too few is set aside and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from counterray.audits.errors import AuditError


@dataclass(frozen=True)
class ComparedLevels:
    """What an audit compares.

    Attributes:
        names: Levels with patients enough, in order.
        set_aside: A sentence on those without; empty where there is none.
    """

    names: tuple[str, ...]
    set_aside: str = ""


def with_patients(
    attribute: str,
    levels: Sequence[str],
    observed: Sequence[str | None],
    patients: Sequence[str],
    *,
    minimum_patients: int,
    named: bool,
) -> ComparedLevels:
    """The levels of which enough patients were observed; a small one costs the audit nothing but itself.

    Args:
        attribute: Name of the attribute.
        levels: Its levels that could be compared.
        observed: ``[N]`` level of each study, or ``None`` where it is not known.
        patients: ``[N]`` the patient of each study.
        minimum_patients: Patients that each level needs.
        named: Whether ``levels.<attribute>`` names the levels: then none of them is left out.

    Raises:
        AuditError: If a level is named twice, a named one has too few patients, or fewer than two levels
            have enough.
    """
    if len(set(levels)) < len(levels):
        raise AuditError(f"levels.{attribute} = {', '.join(levels)} names a level twice. Name each once.")
    rows = {level: [row for row, own in enumerate(observed) if own == level] for level in levels}
    found = {level: len({patients[row] for row in rows[level]}) for level in levels}
    kept = tuple(level for level in levels if found[level] >= minimum_patients)
    small = [level for level in levels if level not in kept]
    needed = f"audit.minimum_patients = {minimum_patients} are needed of each level"
    if small and named:
        told = ", ".join(f"{level!r} has {found[level]} patients" for level in small)
        raise AuditError(
            f"Attribute {attribute!r}: level {told}, and levels.{attribute} names it; {needed}. Leave it out "
            "of that list, add patients (studies, split, fold), or lower audit.minimum_patients."
        )
    if len(kept) < 2:
        there = ", ".join(f"{level} {found[level]}" for level in levels)
        raise AuditError(
            f"Attribute {attribute!r} has {len(kept)} level(s) with patients enough; an audit compares two "
            f"or more. Patients by level: {there}; {needed}. Add patients (studies, split, fold), or lower "
            f"audit.minimum_patients; levels.{attribute}=[...] chooses which levels are compared."
        )
    if not small:
        return ComparedLevels(kept)
    counts = ", ".join(f"{level} ({len(rows[level])} studies of {found[level]} patients)" for level in small)
    return ComparedLevels(
        kept,
        f"Attribute {attribute!r}: left out for want of patients: {counts}; {needed}. To bring it in, add "
        "patients or lower audit.minimum_patients; to leave it out on purpose, set "
        f"levels.{attribute}=[{','.join(kept)}].",
    )
