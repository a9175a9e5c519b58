"""Which attributes judges read from images that were given another level, and from those left alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from counterray.evaluation.counterfactuals import Counterfactuals, patients
from counterray.evaluation.intervals import summarise
from counterray.evaluation.metric import Direction, Judge, Metric
from counterray.evaluation.settings import DEFAULTS, Settings


def attribute_metrics(
    made: Counterfactuals, judges: Mapping[str, Judge], *, settings: Settings = DEFAULTS
) -> list[Metric]:
    """What became of each attribute that a judge reads.

    Of an attribute that the edit sets: ``attribute_effectiveness``, the share of images with another level
    than before that are read as the one asked for; beside it ``attribute_null``, the share of null
    interventions still read as the patient's own, and ``attribute_real``, the same of the images themselves,
    the most that can be asked. Of any other: ``attribute_off_target``, the mean total variation distance of
    the judge's probabilities between counterfactual and null intervention (0 is best, 1 the most).

    Args:
        made: What is evaluated.
        judges: Attribute to a judge with probabilities ``[B, K]`` of its levels.
        settings: How it is scored.
    """
    metrics: list[Metric] = []
    for name, judge in judges.items():
        before, null, after = (
            judge.scores(image, batch_size=settings.batch_size).double().cpu()
            for image in (made.source.image, made.reconstruction, made.image)
        )
        if name in made.attributes:
            asked, own = (batch.attributes[name].cpu() for batch in (made.donor, made.source))
            changed = asked.masked_fill(own.isnan() | (asked == own), torch.nan)
            for metric, scores, levels in (
                ("attribute_effectiveness", after, changed),
                ("attribute_null", null, own),
                ("attribute_real", before, own),
            ):
                values = read_as(scores, levels)
                metrics.append(_summary(metric, name, values, judge, made, settings, "higher"))
        else:
            distance = 0.5 * (after - null).abs().sum(dim=1)
            metrics.append(_summary("attribute_off_target", name, distance, judge, made, settings, "lower"))
    return metrics


def read_as(scores: Tensor, levels: Tensor) -> Tensor:
    """Whether the likeliest level of scores ``[B, K]`` is that of ``levels`` ``[B]``; NaN where unknown."""
    found = (scores.argmax(dim=1) == levels).double()
    return found.masked_fill(levels.isnan(), torch.nan)


def _summary(
    name: str,
    attribute: str,
    values: Tensor,
    judge: Judge,
    made: Counterfactuals,
    settings: Settings,
    direction: Direction,
) -> Metric:
    return summarise(
        name,
        values,
        patients=patients(made.source),
        direction=direction,
        judge=judge.label,
        subset=attribute,
        unit="of images" if direction == "higher" else "",
        seed=settings.seed,
    )
