"""F1 of findings of generated images, as a judge reads them."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.auroc import MINIMUM_POSITIVES, counted_in_macro, macro_note
from counterray.evaluation.counterfactuals import patients
from counterray.evaluation.decisions import Truths, f1_score, f1_threshold
from counterray.evaluation.intervals import Floats, Rows, patient_bootstrap
from counterray.evaluation.metric import Direction, Metric


def f1_thresholds(scores: Tensor, validation: Batch) -> Floats:
    """For each finding the score from which to call it, where F1 on real validation images is largest.

    It is chosen on these, never on generated images: a threshold that generated images need for themselves
    would hide that they look unlike real ones.

    Args:
        scores: The judge's probabilities ``[n, F]`` on these images, in the order of the findings.
        validation: The images, with findings.

    Returns:
        ``[F]``; NaN for a finding without a positive.
    """
    values = scores.detach().double().cpu().numpy()
    labels, known = _truths(validation)
    columns = range(values.shape[1])
    return np.array([f1_threshold(values[known[:, k], k], labels[known[:, k], k]) for k in columns])


def f1_metrics(
    name: str,
    scores: Tensor,
    asked: Batch,
    *,
    cuts: Floats,
    judge: str,
    direction: Direction = "higher",
    minimum_positives: int = MINIMUM_POSITIVES,
    seed: int = 0,
) -> list[Metric]:
    """F1 of each finding at given thresholds, and their macro average.

    Args:
        name: The metric's name; the macro average is called ``<name>_macro``.
        scores: The judge's probabilities ``[B, F]``, in the order of the findings.
        asked: B rows with the findings that the images (were to) show, and their patients.
        cuts: ``[F]``, see `f1_thresholds`.
        judge: Label of the judge that scored.
        direction: ``none`` for scores that others are compared with.
        minimum_positives: Positives, and negatives, that a finding needs for the macro average.
        seed: Of the bootstrap.
    """
    values = scores.detach().double().cpu().numpy()
    labels, known = _truths(asked)
    # A comparison with NaN is false: a finding without threshold is taken out below, not called absent.
    positive = values >= cuts
    counts = [
        (int((labels & known)[:, k].sum()), int((~labels & known)[:, k].sum())) for k in range(len(cuts))
    ]
    smallest = [0 if np.isnan(cut) else min(each) for cut, each in zip(cuts, counts, strict=True)]
    counted = counted_in_macro(asked.finding_names, smallest, minimum_positives)

    def statistic(rows: Rows) -> Floats:
        each = np.array(
            [_masked(positive[rows, k], labels[rows, k], known[rows, k]) for k in range(len(cuts))]
        )
        each[np.isnan(cuts)] = math.nan
        return np.append(each, each[counted].mean() if counted else math.nan)

    point = statistic(np.arange(len(values)))
    intervals = patient_bootstrap(statistic, patients(asked), seed=seed)
    subsets = [*asked.finding_names, ""]
    left_out = [subset for k, subset in enumerate(subsets[:-1]) if k not in counted]
    return [
        Metric(
            name=name if subset else f"{name}_macro",
            subset=subset,
            value=float(point[k]),
            low=intervals[k].low,
            high=intervals[k].high,
            n=sum(counts[k]) if subset else len(values),
            judge=judge,
            direction=direction,
            note=_note(float(cuts[k]), counts[k][0])
            if subset
            else macro_note(left_out, len(cuts), "too few images or no threshold"),
        )
        for k, subset in reversed(list(enumerate(subsets)))
    ]


def _truths(batch: Batch) -> tuple[Truths, Truths]:
    return (batch.findings > 0.5).cpu().numpy(), batch.finding_mask.bool().cpu().numpy()


def _masked(positive: Truths, labels: Truths, known: Truths) -> float:
    return f1_score(positive[known], labels[known])


def _note(cut: float, positives: int) -> str:
    if math.isnan(cut):
        return "undefined: no positive among the validation images to choose a threshold on"
    return f"{positives} positives; threshold {cut:.3g} from real validation images"
