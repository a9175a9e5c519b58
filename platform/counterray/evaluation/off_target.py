"""Off-target change: what the edit did to findings that it was to leave alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from counterray.evaluation.auroc import auroc, within
from counterray.evaluation.counterfactuals import Counterfactuals, patients
from counterray.evaluation.intervals import Floats, Rows, patient_bootstrap, summarise
from counterray.evaluation.metric import Judge, Metric


def off_target_change(before: Tensor, after: Tensor, kept: Tensor) -> Tensor:
    """Mean absolute change of the judge's probability over an image's unchanged findings.

    ``mean_{k kept} |p_k(x̃) - p_k(x)|``: 0 is best, 1 worst.

    Args:
        before: Probabilities ``[B, F]`` on the inputs.
        after: Probabilities ``[B, F]`` on the counterfactuals.
        kept: ``[B, F]`` bool, findings whose target equals their present state.

    Returns:
        ``[B]``; NaN where an image has no such finding.
    """
    weight = kept.to(after.dtype)
    return ((after - before).abs() * weight).sum(dim=1) / weight.sum(dim=1)


def off_target_metrics(
    counterfactuals: Counterfactuals,
    judge: Judge,
    *,
    before: Tensor,
    after: Tensor,
    exact: Tensor | None = None,
    seed: int = 0,
) -> list[Metric]:
    """Off-target change over all findings and of each, and of the exact counterfactuals; change of AUROC.

    A judge answers a little to everything, so even a perfect edit moves it: the exact counterfactual's
    change, where it is known, is what a generator can be asked for. ``off_target_auroc`` is, for each
    finding, the AUROC on the counterfactuals less that on the inputs, both against the inputs' labels, over
    the images in which the edit was to leave it: 0 is best, and below 0 the edit blurred what was there.

    Args:
        counterfactuals: What is evaluated.
        judge: The classifier that scored.
        before: Its probabilities ``[B, F]`` on the inputs, in the order of the findings.
        after: On the counterfactuals.
        exact: On the exact counterfactuals, where known.
        seed: Of the bootstrap.
    """
    kept = counterfactuals.known & ~counterfactuals.changed
    return [
        *_change(counterfactuals, judge, before, after, exact, kept, seed=seed),
        *_auroc_change(counterfactuals, judge, before, after, kept, seed=seed),
    ]


def _change(
    counterfactuals: Counterfactuals,
    judge: Judge,
    before: Tensor,
    after: Tensor,
    exact: Tensor | None,
    kept: Tensor,
    *,
    seed: int,
) -> list[Metric]:
    names = counterfactuals.source.finding_names
    subsets = [("", kept)]
    for k, name in enumerate(names):
        only = torch.zeros_like(kept)
        only[:, k] = kept[:, k]
        if only.any():
            subsets.append((name, only))
    rows = [(subset, off_target_change(before, after, where)) for subset, where in subsets]
    if exact is not None:
        rows.append(("exact counterfactual", off_target_change(before, exact, kept)))
    return [
        summarise(
            "off_target_change",
            values,
            patients=patients(counterfactuals.source),
            direction="none" if subset == "exact counterfactual" else "lower",
            judge=judge.label,
            subset=subset,
            unit="probability",
            seed=seed,
        )
        for subset, values in rows
    ]


def _auroc_change(
    counterfactuals: Counterfactuals, judge: Judge, before: Tensor, after: Tensor, kept: Tensor, *, seed: int
) -> list[Metric]:
    source = counterfactuals.source
    labels = (source.findings > 0.5).cpu().numpy()
    stays = kept.cpu().numpy()
    scores = [part.double().cpu().numpy() for part in (before, after)]
    columns = range(labels.shape[1])

    def change(rows: Rows) -> Floats:
        each = []
        for k in columns:
            own = rows[stays[rows, k]]
            ours, theirs = (auroc(part[own, k], labels[own, k]) for part in (scores[1], scores[0]))
            each.append(ours - theirs)
        return np.array(each)

    point = change(np.arange(len(labels)))
    intervals = patient_bootstrap(change, patients(source), seed=seed)
    counts = [(int(labels[stays[:, k], k].sum()), int(stays[:, k].sum())) for k in columns]
    intervals = [
        within(interval, min(positives, total - positives))
        for interval, (positives, total) in zip(intervals, counts, strict=True)
    ]
    return [
        Metric(
            name="off_target_auroc",
            subset=source.finding_names[k],
            value=float(point[k]),
            low=intervals[k].low,
            high=intervals[k].high,
            n=counts[k][1],
            judge=judge.label,
            direction="higher",
            note=f"{counts[k][0]} of {counts[k][1]} images that should keep it show it",
        )
        for k in columns
    ]
