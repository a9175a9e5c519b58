"""What judges say of counterfactuals: the findings they show, whose they are, and the areas of organs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.areas import area_deviation
from counterray.evaluation.counterfactuals import Counterfactuals, patients
from counterray.evaluation.effectiveness import effectiveness
from counterray.evaluation.effectiveness_ratio import effectiveness_ratio
from counterray.evaluation.finding_scores import f1_metrics, f1_thresholds
from counterray.evaluation.identity import reidentification_rank
from counterray.evaluation.image_sets import Measured
from counterray.evaluation.intervals import summarise
from counterray.evaluation.metric import Judge, Metric
from counterray.evaluation.off_target import off_target_metrics
from counterray.evaluation.settings import DEFAULTS, Settings


def finding_metrics(
    made: Counterfactuals,
    judge: Judge,
    *,
    validation: Batch | None = None,
    prevalence: Mapping[str, float] | None = None,
    settings: Settings = DEFAULTS,
) -> Measured:
    """Effectiveness, its ratio to real images, F1, and what became of findings not asked for.

    Args:
        made: What is evaluated.
        judge: The classifier that scores, never one that a loss has seen.
        validation: Real images to choose F1's thresholds on.
        prevalence: Share of positives of each finding in the training data.
        settings: How they are scored.

    Raises:
        ValueError: If the validation images name other findings.
        UnscorableError: If the judge lacks a finding, or a score is not finite.
    """
    minimum_positives, seed = settings.minimum_positives, settings.seed
    columns = judge.columns(made.source.finding_names)

    def probabilities(image: Tensor) -> Tensor:
        return judge.scores(image, batch_size=settings.batch_size)[:, columns]

    before, after = probabilities(made.source.image), probabilities(made.image)
    exact = probabilities(made.exact) if made.exact is not None else None
    measured = Measured(
        [
            *effectiveness(
                made, judge, before=before, after=after, minimum_positives=minimum_positives, seed=seed
            ),
            *off_target_metrics(made, judge, before=before, after=after, exact=exact, seed=seed),
        ]
    )
    # Both are patients of the source: who was asked to show what, and whose image it is.
    asked = made.asked
    if prevalence is None:
        measured.absent["effectiveness ratio"] = "the findings' prevalence in training was not given"
    else:
        measured.metrics += effectiveness_ratio(
            after,
            asked,
            before,
            made.source,
            prevalence=prevalence,
            judge=judge.label,
            minimum_positives=minimum_positives,
            seed=seed,
        )
    if validation is None:
        measured.absent["F1"] = "there are no real validation images to choose its thresholds on"
        return measured
    if validation.finding_names != asked.finding_names:
        raise ValueError(
            f"The findings asked for ({', '.join(asked.finding_names)}) are not those of the validation "
            f"images ({', '.join(validation.finding_names)}). Read both from one dataset."
        )
    cuts = f1_thresholds(probabilities(validation.image), validation)
    for name, scores, batch in (("generated_f1", after, asked), ("real_f1", before, made.source)):
        measured.metrics += f1_metrics(
            name,
            scores,
            batch,
            cuts=cuts,
            judge=judge.label,
            direction="higher" if scores is after else "none",
            minimum_positives=minimum_positives,
            seed=seed,
        )
    return measured


def identity_metrics(made: Counterfactuals, judge: Judge, *, settings: Settings = DEFAULTS) -> list[Metric]:
    """Whether the identity judge finds the own patient among all sources, by share and by rank."""
    who = patients(made.source)
    gallery = judge.scores(made.source.image, batch_size=settings.batch_size)

    def rank(image: Tensor) -> Tensor:
        features = judge.scores(image, batch_size=settings.batch_size)
        return reidentification_rank(features, gallery, patients=who, gallery_patients=who).double()

    people = len(set(who))
    metrics = []
    for subset, image in {"": made.image, "exact counterfactual": made.exact}.items():
        if image is None:
            continue
        ranks = rank(image)
        note = (
            f"among {people} patients; chance is {1 / people:.2g}"
            if not subset
            else "what could at best be asked"
        )
        metrics.append(
            summarise(
                "identity_top1",
                (ranks == 1).double(),
                patients=who,
                direction="higher" if not subset else "none",
                judge=judge.label,
                subset=subset,
                unit="of images",
                note=note,
                seed=settings.seed,
            )
        )
        metrics.append(
            summarise(
                "identity_rank",
                ranks,
                patients=who,
                statistic="median",
                direction="lower" if not subset else "none",
                judge=judge.label,
                subset=subset,
                note=f"median, among {people} patients",
                seed=settings.seed,
            )
        )
    return metrics


def area_metrics(
    made: Counterfactuals, exact: Tensor, judge: Judge, *, settings: Settings = DEFAULTS
) -> list[Metric]:
    """Median deviation of each structure's area from the exact counterfactual's."""
    size = settings.batch_size
    deviation = area_deviation(
        judge.scores(made.image, batch_size=size), judge.scores(exact, batch_size=size)
    )
    return [
        summarise(
            "area_deviation",
            deviation[:, k],
            patients=patients(made.source),
            statistic="median",
            direction="lower",
            judge=judge.label,
            subset=name,
            unit="of the exact area",
            note=_quantiles(deviation[:, k]),
            seed=settings.seed,
        )
        for k, name in enumerate(judge.outputs)
    ]


def _quantiles(values: Tensor) -> str:
    known = values[~values.isnan()]
    if not len(known):
        return "no image has this structure"
    low, high, worst = torch.quantile(known, torch.tensor([0.25, 0.75, 0.95], dtype=known.dtype)).tolist()
    return f"median; quartiles {low:.3f} and {high:.3f}, 95 % of images below {worst:.3f}"
