"""Verdicts: what may be said of a classifier, in one word and in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from counterray.audits.gates import Gate

Verdict = Literal["invariant", "depends", "inconclusive", "cannot_tell"]
"""``invariant``: equivalent within the margins. ``depends``: the attribute moves the scores beyond what null
interventions do, and by more than a margin as far as can be estimated. ``inconclusive``: neither could be
shown with so many patients. ``cannot_tell``: the generator is not fit to answer."""


def pair_verdict(
    *, closed: Sequence[Gate], equivalence_p: float, corrected_p: float, size: float, alpha: float
) -> Verdict:
    """The verdict of one target and pair of levels.

    A closed gate comes first, since nothing that rests on the generator's images means anything then. Then
    equivalence: an effect that is detected and shown to lie within the margins is one that the user declared
    tolerable beforehand. A large p-value alone earns nothing, and neither does a small one: with a generator
    that repeats itself anything that moves is significant, however little, so that "depends" takes an effect
    whose estimate is as large as a margin.

    Args:
        closed: Gates that are closed.
        equivalence_p: The largest of the p-values of the equivalence tests.
        corrected_p: p-value of dependence, corrected for multiplicity.
        size: The largest of the estimated effects, in units of its margin; see `MarginConfig.size`.
        alpha: Level of both.
    """
    if closed:
        return "cannot_tell"
    if equivalence_p <= alpha:
        return "invariant"
    return "depends" if corrected_p <= alpha and size >= 1 else "inconclusive"


def overall_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict over all pairs of levels: one dependence is enough, invariance has to hold for all."""
    found = set(verdicts)
    for verdict in ("cannot_tell", "depends", "inconclusive"):
        if verdict in found:
            return verdict
    return "invariant"


def gate_sentence(closed: Sequence[Gate]) -> str:
    """Why the generator cannot tell, and what would help."""
    return " ".join(
        f"Gate {gate.name} is closed: {gate.reason}. To open it, {gate.remedy}." for gate in closed
    )
