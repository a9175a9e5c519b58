"""Confidence intervals that respect that several images can belong to one patient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from counterray.evaluation.metric import Direction, Metric

RESAMPLES = 1000
"""Bootstrap resamples; Efron and Tibshirani (1993, section 13.3) ask for at least 1000 for an interval."""

CONFIDENCE = 0.95
"""Coverage of every interval."""

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """Ends of a confidence interval; NaN where it could not be computed."""

    low: float
    high: float


def patient_resamples(
    patients: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[Rows]:
    """Draws patients with replacement and gives, each time, the rows of all their images.

    Args:
        patients: The patient of each of the n rows; rows of one patient are drawn together.
        resamples: Number of draws.
        seed: Of the draws.

    Yields:
        Row numbers, as many as the drawn patients have images.
    """
    _, codes = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = random.integers(0, len(counts), size=len(counts))
        sizes = counts[drawn]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield order[np.repeat(starts[drawn], sizes) + within]


def patient_bootstrap(
    statistic: Callable[[Rows], Floats],
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Percentile interval of K statistics, resampling patients instead of images.

    Images of one patient resemble each other; resampling images would pretend that they are independent
    and give intervals that are too narrow.

    Args:
        statistic: Row numbers to ``[K]`` values; NaN where a resample does not allow a value (an AUROC
            without a positive). Such resamples are left out of that statistic's interval.
        patients: The patient of each row.
        resamples: Number of resamples.
        seed: Of the draws.

    Returns:
        K intervals; NaN where fewer than two patients or no valid resample leave nothing to estimate.

    Reference: Field and Welsh, 2007, Bootstrapping clustered data, J. R. Stat. Soc. B 69(3).
    """
    values = np.stack(
        [statistic(rows) for rows in patient_resamples(patients, resamples=resamples, seed=seed)]
    )
    if len(set(patients)) < 2:
        return [Interval(math.nan, math.nan)] * values.shape[1]
    return [_percentiles(column[~np.isnan(column)]) for column in values.T]


def summarise(
    name: str,
    values: Tensor | Floats,
    *,
    patients: Sequence[str],
    direction: Direction,
    statistic: Literal["mean", "median"] = "mean",
    judge: str | None = None,
    subset: str = "",
    unit: str = "",
    note: str = "",
    seed: int = 0,
) -> Metric:
    """Mean or median of one value per image, with a patient-clustered interval.

    Args:
        name: The metric's name.
        values: ``[n]``; NaN where an image has no value: left out, and counted in the note.
        patients: The n images' patients.
        direction: Which direction is better.
        statistic: How the values become one number.
        judge: Label of the judge that scored.
        subset: What the number is restricted to.
        unit: Unit of the values.
        note: What a reader must know.
        seed: Of the bootstrap.

    Raises:
        ValueError: If there are not as many patients as values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) != len(patients):
        raise ValueError(f"{name}: {len(numbers)} values but {len(patients)} patients; one each is needed.")
    known = ~np.isnan(numbers)
    notes = [note] if note else []
    if not known.all():
        notes.append(f"{int((~known).sum())} of {len(numbers)} images have no value")
    numbers, kept = numbers[known], [p for p, keep in zip(patients, known, strict=True) if keep]
    value, interval = math.nan, Interval(math.nan, math.nan)
    if len(numbers):
        reduce = np.mean if statistic == "mean" else np.median
        value = float(reduce(numbers))
        [interval] = patient_bootstrap(lambda rows: np.atleast_1d(reduce(numbers[rows])), kept, seed=seed)
    return Metric(
        name=name,
        value=value,
        low=interval.low,
        high=interval.high,
        n=len(numbers),
        direction=direction,
        judge=judge,
        subset=subset,
        unit=unit,
        note="; ".join(notes) or ("" if len(numbers) else "no image"),
    )


def _percentiles(values: Floats) -> Interval:
    if not len(values):
        return Interval(math.nan, math.nan)
    tail = 50 * (1 - CONFIDENCE)
    # No interpolation between order statistics, so that an infinite value (PSNR of equal images) stays one.
    low, high = np.percentile(values, [tail, 100 - tail], method="inverted_cdf")
    return Interval(float(low), float(high))
