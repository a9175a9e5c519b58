"""Effectiveness: does the counterfactual show the pathology that it was asked to show?"""

from __future__ import annotations

from torch import Tensor

from counterray.evaluation.auroc import MINIMUM_POSITIVES, auroc_metrics
from counterray.evaluation.counterfactuals import Counterfactuals, patients
from counterray.evaluation.metric import Judge, Metric


def effectiveness(
    counterfactuals: Counterfactuals,
    judge: Judge,
    *,
    before: Tensor,
    after: Tensor,
    minimum_positives: int = MINIMUM_POSITIVES,
    seed: int = 0,
) -> list[Metric]:
    """AUROC of the judge's scores on the counterfactuals against the findings that were asked for.

    Three AUROCs are reported, because the first means little alone:

    - ``effectiveness_auroc``: scores of the counterfactuals against the target findings; 1 is best.
    - ``no_edit_auroc``: scores of the unedited inputs against the same targets; what doing nothing gets
      (about 0.5 where donors are drawn at random).
    - ``real_auroc``: scores of the real inputs against their own findings; what the judge allows.

    Args:
        counterfactuals: What is evaluated.
        judge: The classifier that scores, never one that a loss has seen.
        before: The judge's probabilities ``[B, F]`` on the inputs, in the order of the findings.
        after: The same on the counterfactuals.
        minimum_positives: What a finding needs for the macro average.
        seed: Of the bootstrap.

    Reference: Monteiro et al., 2023, https://arxiv.org/abs/2303.01274, section 3.3, with the AUROC of a
        multi-label classifier in place of accuracy.
    """
    source, donor = counterfactuals.source, counterfactuals.donor
    return [
        metric
        for name, scores, batch in (
            ("effectiveness_auroc", after, donor),
            ("no_edit_auroc", before, donor),
            ("real_auroc", before, source),
        )
        for metric in auroc_metrics(
            name,
            scores,
            batch.findings,
            batch.finding_mask,
            outputs=batch.finding_names,
            patients=patients(source),
            judge=judge.label,
            direction="higher" if scores is after else "none",
            minimum_positives=minimum_positives,
            seed=seed,
        )
    ]
