"""Effectiveness ratio: AUROC on counterfactuals as a share of what the same judge reaches on real images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.auroc import FEWEST, MINIMUM_POSITIVES, auroc, counted_in_macro, within
from counterray.evaluation.counterfactuals import patients
from counterray.evaluation.intervals import Floats, Rows
from counterray.evaluation.metric import Metric
from counterray.evaluation.two_sample import two_sample_bootstrap

_FEW = "; too few for an interval"

COMMON = 0.05
"""Prevalence above which a finding counts as common."""


def effectiveness_ratio(
    scores: Tensor,
    asked: Batch,
    real_scores: Tensor,
    real: Batch,
    *,
    prevalence: Mapping[str, float],
    judge: str,
    minimum_positives: int = MINIMUM_POSITIVES,
    seed: int = 0,
) -> list[Metric]:
    """Ratio of AUROCs of each finding, its macro averages, and that of the rarest finding.

    ``AUROC(scores on counterfactuals, findings asked for) / AUROC(scores on real images, their findings)``.
    1 says that the judge reads the counterfactuals as well as real images; an edit that does nothing gets
    0.5 over the real AUROC, so the ratio is not 0 then. It exceeds 1 where edits are plainer than real
    findings. A macro average is the mean of the ratios of the findings that it counts.

    Patients are resampled with their real images and their counterfactuals together, so that what makes
    one patient's images hard to read cancels.

    Args:
        scores: The judge's probabilities ``[n, F]`` on the counterfactuals, in the order of the findings.
        asked: n rows with the findings asked for and the patients that the images were made from.
        real_scores: The same judge's probabilities ``[m, F]`` on real images.
        real: These images, with findings and patients.
        prevalence: Share of positives of each finding in the training data.
        judge: Label of the judge that scored.
        minimum_positives: Positives and negatives, asked for and real, that a finding needs for the macro
            averages.
        seed: Of the bootstrap.

    Returns:
        ``effectiveness_ratio_macro`` over all findings, over those of a prevalence above 5 % (subset
        ``common``) and over the others (``rare``); ``effectiveness_ratio`` of each finding, the rarest of
        them marked in its note.

    Raises:
        ValueError: If the batches name different findings, a prevalence is missing or no share, shapes do
            not fit, or a score is not finite.
    """
    names = asked.finding_names
    _require_fit(scores, asked, real_scores, real, prevalence)
    samples = (_Sample(scores, asked), _Sample(real_scores, real))
    smallest = [min(sample.smallest(k) for sample in samples) for k in range(len(names))]
    enough = counted_in_macro(names, smallest, minimum_positives)
    groups = {
        "": enough,
        "common": [k for k in enough if prevalence[names[k]] > COMMON],
        "rare": [k for k in enough if prevalence[names[k]] <= COMMON],
    }

    def statistic(rows: Rows, real_rows: Rows) -> Floats:
        ours, theirs = samples[0].areas(rows), samples[1].areas(real_rows)
        # A resample of few images can rank every positive last, and has no ratio then.
        each = np.divide(ours, theirs, out=np.full_like(ours, math.nan), where=theirs > 0)
        means = [each[group].mean() if group else math.nan for group in groups.values()]
        return np.array([*means, *each])

    sizes = [len(sample.scores) for sample in samples]
    point = statistic(np.arange(sizes[0]), np.arange(sizes[1]))
    intervals = two_sample_bootstrap(statistic, patients(asked), patients(real), seed=seed)
    own = [within(interval, few) for interval, few in zip(intervals[len(groups) :], smallest, strict=True)]
    intervals = [*intervals[: len(groups)], *own]
    rarest = min(names, key=lambda name: prevalence[name])
    notes = [_macro_note([names[k] for k in group]) for group in groups.values()]
    notes += [
        _note(name, prevalence[name], rarest, [sample.positives(k) for sample in samples], smallest[k])
        for k, name in enumerate(names)
    ]
    return [
        Metric(
            name="effectiveness_ratio_macro" if k < len(groups) else "effectiveness_ratio",
            subset=subset,
            value=float(point[k]),
            low=intervals[k].low,
            high=intervals[k].high,
            n=sizes[0],
            judge=judge,
            direction="higher",
            unit="of the real AUROC",
            note=notes[k],
        )
        for k, subset in enumerate([*groups, *names])
    ]


class _Sample:
    """Scores and labels as arrays."""

    def __init__(self, scores: Tensor, batch: Batch) -> None:
        self.scores = scores.detach().double().cpu().numpy()
        self.labels = (batch.findings > 0.5).cpu().numpy()
        self.known = batch.finding_mask.bool().cpu().numpy()

    def smallest(self, finding: int) -> int:
        """Positives or negatives, whichever are fewer."""
        labels: NDArray[np.bool_] = self.labels[self.known[:, finding], finding]
        return int(min(labels.sum(), (~labels).sum()))

    def positives(self, finding: int) -> int:
        """Rows that are known to show the finding."""
        return int(self.labels[self.known[:, finding], finding].sum())

    def areas(self, rows: Rows) -> Floats:
        """AUROC of each finding among these rows."""
        columns = range(self.scores.shape[1])
        kept = [rows[self.known[rows, k]] for k in columns]
        return np.array([auroc(self.scores[kept[k], k], self.labels[kept[k], k]) for k in columns])


def _require_fit(
    scores: Tensor, asked: Batch, real_scores: Tensor, real: Batch, prevalence: Mapping[str, float]
) -> None:
    names = asked.finding_names
    if names != real.finding_names:
        raise ValueError(
            f"Effectiveness ratio: the findings asked for ({', '.join(names)}) are not those of the real "
            f"images ({', '.join(real.finding_names)}). Read both from one dataset."
        )
    wrong = [name for name in names if not 0 <= prevalence.get(name, math.nan) <= 1]
    if wrong:
        raise ValueError(
            f"Effectiveness ratio: no prevalence between 0 and 1 is given for {', '.join(wrong)}; count "
            "the training split's labels."
        )
    for kind, values, batch in (("counterfactuals", scores, asked), ("real images", real_scores, real)):
        if tuple(values.shape) != (len(batch), len(names)):
            raise ValueError(
                f"Effectiveness ratio: scores on {kind} have shape {list(values.shape)}; "
                f"[{len(batch)}, {len(names)}] is needed, a column for each finding."
            )
        if not values.isfinite().all():
            raise ValueError(
                f"Effectiveness ratio: {int((~values.isfinite()).sum())} scores on {kind} are not finite."
            )


def _note(name: str, prevalence: float, rarest: str, positives: Sequence[int], smallest: int) -> str:
    shown = f"{positives[0]} asked for, {positives[1]} real; prevalence {100 * prevalence:.2g} %"
    return shown + ("; the rarest" if name == rarest else "") + (_FEW if smallest < FEWEST else "")


def _macro_note(counted: Sequence[str]) -> str:
    if not counted:
        return "no finding has enough positives and negatives"
    return "mean over " + ", ".join(name.replace("_", " ") for name in counted)
