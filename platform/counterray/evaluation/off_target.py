"""Off-target change: what the edit did to findings that it was to leave alone."""

from __future__ import annotations

import torch
from torch import Tensor

from counterray.evaluation.counterfactuals import Counterfactuals, patients
from counterray.evaluation.intervals import summarise
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
    """Off-target change over all findings and of each, and that of the exact counterfactuals.

    A judge answers a little to everything, so even a perfect edit moves it: the exact counterfactual's
    change, where it is known, is what a generator can be asked for.

    Args:
        counterfactuals: What is evaluated.
        judge: The classifier that scored.
        before: Its probabilities ``[B, F]`` on the inputs, in the order of the findings.
        after: On the counterfactuals.
        exact: On the exact counterfactuals, where known.
        seed: Of the bootstrap.
    """
    kept = counterfactuals.known & ~counterfactuals.changed
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
