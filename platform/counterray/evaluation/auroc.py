"""Area under the receiver operating characteristic, per finding and over findings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata
from torch import Tensor

from counterray.evaluation.intervals import Floats, Interval, patient_bootstrap
from counterray.evaluation.metric import Direction, Metric, UnscorableError

MINIMUM_POSITIVES = 50
"""Positives that a finding needs to count in the macro average: below, its interval spans about ±0.08."""


NO_FINDING = "no_finding"
"""The absence of all other findings: macro averages leave it out, as it would count them twice."""

FEWEST = 10
"""Positives, and negatives, of an AUROC with an interval: the bootstrap's is far too narrow with fewer."""


def auroc(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties counted half.

    ``(sum of the positives' ranks - P (P + 1) / 2) / (P N)``. 1 is best, 0.5 is chance.

    Args:
        scores: ``[n]``.
        labels: ``[n]``, true for a positive.

    Returns:
        A value in [0, 1]; NaN without a positive or without a negative.

    Reference: Hanley and McNeil, 1982, https://doi.org/10.1148/radiology.143.1.7063747.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return math.nan
    ranks = rankdata(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def counted_in_macro(names: Sequence[str], smallest: Sequence[int], minimum: int) -> list[int]:
    """Positions of the outputs that a macro average counts.

    Args:
        names: The outputs.
        smallest: Of each the number of positives or of negatives, whichever is smaller.
        minimum: What it needs of both.
    """
    return [k for k, name in enumerate(names) if smallest[k] >= minimum and name != NO_FINDING]


def concordance(scores: Floats, values: Floats) -> float:
    """Probability that of two individuals the one with the larger value scores higher, ties counted half.

    Pairs of equal value do not count; of values 0 and 1 it is the `auroc`. 1 is best, 0.5 is chance. With C
    concordant and D discordant pairs of n (n - 1) / 2, T and U of them tied in score and in value,
    ``τ_b √((n₀ - T)(n₀ - U)) = C - D``, and the answer is ``((C - D) / (n₀ - U) + 1) / 2``.

    Args:
        scores: ``[n]``.
        values: ``[n]``.

    Returns:
        A value in [0, 1]; NaN where all values are equal.

    Reference: Harrell, Lee and Mark, 1996, Statistics in Medicine 15(4), 361-387, section 5.5 (the index c).
    """
    pairs, tied_scores, tied_values = (
        float((counts * (counts - 1)).sum()) / 2
        for counts in (
            np.array([len(scores)]),
            *(np.unique(each, return_counts=True)[1] for each in (scores, values)),
        )
    )
    if pairs == tied_values:
        return math.nan
    if pairs == tied_scores:
        return 0.5
    tau = kendalltau(scores, values, method="asymptotic").statistic
    surplus = tau * math.sqrt((pairs - tied_scores) * (pairs - tied_values))
    return float(surplus / (pairs - tied_values) + 1) / 2


def auroc_metrics(
    name: str,
    scores: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    outputs: Sequence[str],
    patients: Sequence[str],
    judge: str | None,
    direction: Direction = "higher",
    minimum_positives: int = MINIMUM_POSITIVES,
    seed: int = 0,
) -> list[Metric]:
    """AUROC of each output and their macro average, with patient-clustered bootstrap intervals.

    The macro average takes the outputs with at least ``minimum_positives`` positives and as many
    negatives, but never "no finding", and its note says which. Outputs without any positive or negative are
    NaN, with the reason.

    Args:
        name: The metric's name; the macro average is called ``<name>_macro``.
        scores: ``[n, K]``, higher for more likely.
        labels: ``[n, K]``, above 0.5 for a positive.
        mask: ``[n, K]`` bool, true where the label is known.
        outputs: Names of the K outputs.
        patients: The n images' patients.
        judge: Label of the judge that scored.
        direction: ``none`` for an AUROC that others are compared with.
        minimum_positives: Positives, and negatives, for the macro average.
        seed: Of the bootstrap.

    Raises:
        UnscorableError: If a score is not finite.
    """
    values = scores.detach().double().cpu().numpy()
    if not np.isfinite(values).all():
        wrong = int((~np.isfinite(values)).sum())
        raise UnscorableError(f"{name}: {wrong} scores of {judge} are not finite.")
    positive = (labels > 0.5).cpu().numpy()
    known = mask.bool().cpu().numpy()
    counts = [
        (int((positive & known)[:, k].sum()), int((~positive & known)[:, k].sum()))
        for k in range(len(outputs))
    ]
    counted = counted_in_macro(outputs, [min(count) for count in counts], minimum_positives)
    left_out = [name for k, name in enumerate(outputs) if k not in counted]

    def statistic(rows: NDArray[np.int64]) -> Floats:
        each = np.array(
            [_masked(values[rows, k], positive[rows, k], known[rows, k]) for k in range(len(outputs))]
        )
        return np.append(each, each[counted].mean() if counted else math.nan)

    point = statistic(np.arange(len(values)))
    intervals = patient_bootstrap(statistic, patients, seed=seed)
    intervals = [
        *(within(interval, min(count)) for interval, count in zip(intervals, counts, strict=False)),
        intervals[-1],
    ]
    metrics = [
        Metric(
            name=name,
            subset=output,
            value=float(point[k]),
            low=intervals[k].low,
            high=intervals[k].high,
            n=sum(counts[k]),
            judge=judge,
            direction=direction,
            note=_count_note(*counts[k]),
        )
        for k, output in enumerate(outputs)
    ]
    macro = Metric(
        name=f"{name}_macro",
        value=float(point[-1]),
        low=intervals[-1].low,
        high=intervals[-1].high,
        n=len(values),
        judge=judge,
        direction=direction,
        note=macro_note(left_out, len(outputs), f"fewer than {minimum_positives} positives or negatives"),
    )
    return [macro, *metrics]


def within(interval: Interval, smallest: int) -> Interval:
    """The interval, where there are at least `FEWEST` positives and negatives to have one."""
    return interval if smallest >= FEWEST else Interval(math.nan, math.nan)


def _masked(scores: Floats, labels: NDArray[np.bool_], known: NDArray[np.bool_]) -> float:
    return auroc(scores[known], labels[known])


def _count_note(positives: int, negatives: int) -> str:
    if positives and negatives:
        few = "; too few for an interval" if min(positives, negatives) < FEWEST else ""
        return f"{positives} positives{few}"
    return f"undefined: {positives} positives, {negatives} negatives"


def macro_note(left_out: Sequence[str], outputs: int, reason: str) -> str:
    """What a macro average counts, and why it leaves the others out."""
    if not left_out:
        return f"all {outputs}"
    few = ", ".join(name.replace("_", " ") for name in left_out if name != NO_FINDING)
    because = [f"{reason}: {few}"] if few else []
    because += ["no finding is the absence of the others"] if NO_FINDING in left_out else []
    return "; ".join([f"{outputs - len(left_out)} of {outputs}", *because])
