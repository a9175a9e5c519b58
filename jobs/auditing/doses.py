"""Doses of a continuous attribute that can be compared on the audited studies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from counterray.audits.dose_scores import check_doses
from counterray.audits.errors import AuditError
from counterray.data.study import UNITS
from counterray.evaluation.intervals import Floats

SUGGESTED = (0.1, 0.5, 0.9)
"""Quantiles of the own doses, suggested where none are chosen: beyond them there is hardly anybody."""


def compared_doses(attribute: str, chosen: Sequence[float] | None, own: Floats) -> tuple[float, ...]:
    """The doses of a continuous attribute that are compared.

    Args:
        attribute: Name of the attribute.
        chosen: What ``doses.<attribute>`` names, if it does.
        own: ``[N]`` dose of each audited study, all known.

    Raises:
        AuditError: If none are chosen, they cannot be followed, or one lies outside of what was observed.
    """
    if not len(own):
        raise AuditError(
            f"Attribute {attribute!r}: it is known of no audited study. Choose another attribute or split."
        )
    low, high, unit = float(own.min()), float(own.max()), UNITS[attribute]
    observed = f"the audited studies have {low:g} to {high:g} {unit}"
    if chosen is None:
        example = ",".join(f"{dose:.3g}" for dose in np.quantile(own, SUGGESTED))
        raise AuditError(
            f"Attribute {attribute!r} is continuous: doses.{attribute} has to say where it is compared, such "
            f"as --set doses.{attribute}=[{example}]; {observed}."
        )
    check_doses(attribute, chosen)
    outside = [f"{dose:g}" for dose in chosen if not low <= dose <= high]
    if outside:
        raise AuditError(
            f"doses.{attribute} names {', '.join(outside)} {unit}; {observed}. Choose doses within: beyond "
            "them neither a generator nor a judge has seen anybody."
        )
    return tuple(map(float, chosen))
