"""`AuditError`, and the checks that every audit makes of what it is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterray.evaluation.intervals import Floats

Codes = NDArray[np.int64]
"""Positions of levels or patients."""

MINIMUM_PATIENTS = 10
"""Patients of each level, unless a setting says otherwise: with fewer, a group's own rates mean nothing."""


class AuditError(ValueError):
    """An audit cannot be made of what was given; the message names it, the limit and the remedy."""


def checked_scores(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Floats:
    """Scores as float64 of a given shape.

    Raises:
        AuditError: If the shape is another, or a score is no number in [0, 1].
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.shape != shape:
        raise AuditError(f"{name} has shape {scores.shape}; {shape} is needed, a score for each individual.")
    wrong = ~np.isfinite(scores)
    if wrong.any():
        raise AuditError(
            f"{name}: {int(wrong.sum())} of {scores.size} scores are no finite numbers. Look at the first at "
            f"{_first(wrong)}; mend the classifier's adapter or leave out these individuals."
        )
    wrong = (scores < 0) | (scores > 1)
    if wrong.any():
        raise AuditError(
            f"{name}: {int(wrong.sum())} of {scores.size} scores lie outside 0 to 1, such as "
            f"{scores[wrong][0]:g} at {_first(wrong)}. Audits take probabilities: apply the sigmoid or the "
            "softmax that the classifier was trained with."
        )
    return scores


def checked_labels(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Floats:
    """Labels 0 or 1, NaN where unknown, as float64 of a given shape.

    Raises:
        AuditError: If the shape is another, or a label is neither 0, 1 nor NaN.
    """
    labels = np.asarray(values, dtype=np.float64)
    if labels.shape != shape:
        raise AuditError(f"{name} has shape {labels.shape}; {shape} is needed, a label for each individual.")
    wrong = ~(np.isnan(labels) | (labels == 0) | (labels == 1))
    if wrong.any():
        raise AuditError(
            f"{name}: {labels[wrong][0]:g} at {_first(wrong)} is no label; 0, 1, or NaN where it is unknown."
        )
    return labels


def encoded_patients(patients: Sequence[str], *, size: int) -> Codes:
    """Patients ``[N]`` as numbers from 0, in the order of their names.

    Raises:
        AuditError: If there are not as many as individuals, or fewer than two different ones.
    """
    if len(patients) != size:
        raise AuditError(f"{len(patients)} patients are named for {size} individuals; one each is needed.")
    names, codes = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise AuditError(
            f"All {size} individuals are of {len(names)} patient(s); an audit needs two or more, since "
            "intervals and tests take patients, not images, as independent."
        )
    return codes.astype(np.int64)


def checked_groups(
    attribute: str,
    groups: ArrayLike,
    levels: Sequence[str],
    patients: Codes,
    *,
    minimum_patients: int = MINIMUM_PATIENTS,
) -> Codes:
    """Observed levels ``[N]`` of an attribute as positions in ``levels``, with enough patients of each.

    Raises:
        AuditError: If there are fewer than two levels, a position is none of them, or a level has too few
            patients.
    """
    codes = np.asarray(groups)
    if len(levels) < 2:
        raise AuditError(
            f"Attribute {attribute!r} has {len(levels)} level(s) ({', '.join(levels) or 'none'}); an audit "
            "compares two or more. Choose another attribute, or data where it differs."
        )
    if len(set(levels)) < len(levels):
        raise AuditError(f"Attribute {attribute!r}: levels {', '.join(levels)} name one twice.")
    if codes.shape != patients.shape:
        raise AuditError(
            f"Attribute {attribute!r}: observed levels have shape {codes.shape} for {len(patients)} "
            "individuals; one each is needed."
        )
    outside = len(codes) and (codes.min() < 0 or codes.max() >= len(levels))
    if not np.issubdtype(codes.dtype, np.integer) or outside:
        raise AuditError(
            f"Attribute {attribute!r}: observed levels must be whole numbers from 0 to {len(levels) - 1}, "
            "positions in the list of levels."
        )
    for position, level in enumerate(levels):
        found = len(np.unique(patients[codes == position]))
        if found < minimum_patients:
            raise AuditError(
                f"Attribute {attribute!r}: level {level!r} has {found} patients; minimum_patients = "
                f"{minimum_patients} are needed. Add patients, join it with another level, leave the level "
                "out, or lower minimum_patients."
            )
    return codes.astype(np.int64)


def _first(wrong: NDArray[np.bool_]) -> str:
    position = [int(index) for index in np.argwhere(wrong)[0]]
    return f"position {position[0] if len(position) == 1 else position}"
