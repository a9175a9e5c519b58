"""What was measured, as the paper's tables: means over seeds, bars and by how much they are missed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

import numpy as np

from counterray.evaluation.intervals import Floats
from jobs.reproduction.bars import Bar, Measured, Spread
from jobs.reproduction.causal_disentanglement.experiment import Arm

EFFECTIVENESS_COMMON, EFFECTIVENESS_RAREST = 0.95, 0.90
AREA = 0.05
DIVERSITY = 0.8
TIMES = 10.0
"""The bars: AUROC on counterfactuals over that on real images (macro over findings of more than 5 %
prevalence; the rarest with noise optimisation), deviation from the exact counterfactual's area, diversity of
the real class's, and time of Algorithm 2 as printed over ours."""


@dataclass(frozen=True)
class ArmRow:
    """A row of the ablation.

    Attributes:
        name: Name of the arm.
        arm: Its label and the paper's numbers.
        numbers: Column to the number of all seeds.
        optimised: Images of the first seed whose noise was optimised, of how many.
    """

    name: str
    arm: Arm
    numbers: Mapping[str, Spread] = field(default_factory=dict)
    optimised: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Steps:
    """Steps of the paper's table, from one row to the next, beside ours.

    Attributes:
        compared: How many could be compared.
        against: A sentence for each that goes the other way here.
        left_out: A sentence for each that the images cannot show.
    """

    compared: int
    against: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


FRECHET: Final = "frechet_distance"
AUROC: Final = "auroc"
_SOURCE = {
    FRECHET: "frechet_distance",
    AUROC: "effectiveness_auroc_macro",
    "ground_truth_error": "ground_truth_error",
    "ground_truth_error_where_changed": "ground_truth_error_where_changed",
}
"""Columns of the ablation to the metrics behind them; areas come with the segmentor's structures."""


def metric(measured: Sequence[Measured], key: str) -> Spread:
    """A metric of every seed; NaN where a seed lacks it."""
    return Spread.of(seed["metrics"].get(key, {"value": None})["value"] for seed in measured)


def structures(measured: Sequence[Measured]) -> tuple[str, ...]:
    """What areas were measured of."""
    prefix = "area_deviation["
    found = (key for seed in measured for key in seed["metrics"] if key.startswith(prefix))
    return tuple(dict.fromkeys(key.removeprefix(prefix).removesuffix("]") for key in found))


def ablation(arms: Mapping[str, Arm], scores: Mapping[str, Sequence[Measured]]) -> list[ArmRow]:
    """The rows of table (a).

    Args:
        arms: The arms that were run, in the order of the paper's table.
        scores: Arm to what each seed measured.
    """
    rows = []
    for name, arm in arms.items():
        areas = {
            f"area_{part}": metric(scores[name], f"area_deviation[{part}]")
            for part in structures(scores[name])
        }
        numbers = {column: metric(scores[name], key) for column, key in _SOURCE.items()}
        first = scores[name][0]
        rows.append(ArmRow(name, arm, numbers | areas, (first["optimised"], first["studies"])))
    return rows


def steps_beside(rows: Sequence[ArmRow], *, fewest: int) -> Steps:
    """Which steps of the paper's table go the other way here.

    Steps are compared within a seed, whose judges are the same for all arms. One that optimises noise is
    compared only if that changes ``fewest`` images or more.
    """
    compared = 0
    against, left_out = list[str](), list[str]()
    columns: tuple[tuple[Literal["frechet_distance", "auroc"], str, int], ...] = (
        (FRECHET, "Fréchet distance", -1),
        (AUROC, "AUROC", 1),
    )
    for column, words, sign in columns:
        for before, after in pairwise(rows):
            if column not in before.arm.published or column not in after.arm.published:
                continue
            count, of = after.optimised
            if after.arm.optimise and not before.arm.optimise and count < fewest:
                left_out.append(
                    f"{words}: noise was optimised in {count} of {of} images, those that are to show a rare "
                    f"finding, so this table cannot show what it does; table (c) does."
                )
                continue
            theirs = before.arm.published[column], after.arm.published[column]
            ours = before.numbers[column], after.numbers[column]
            published = math.copysign(1, sign * (theirs[1] - theirs[0]))
            steps = [sign * (b - a) * published for a, b in zip(ours[0].values, ours[1].values, strict=True)]
            if math.isnan(sum(steps)):
                continue
            compared += 1
            if sum(steps) >= 0:
                continue
            against.append(
                f"{words}: the paper goes from {theirs[0]:g} ({before.arm.label}) to {theirs[1]:g} "
                f"({after.arm.label}); here it goes the other way, from {ours[0].text} to {ours[1].text}, in "
                f"{sum(step < 0 for step in steps)} of {len(steps)} seeds."
            )
    return Steps(compared, tuple(against), tuple(left_out))


def counterfactual_bars(measured: Sequence[Measured]) -> list[Bar]:
    """The bars of table (b), of the full arm."""
    error = metric(measured, "ground_truth_error")
    where = "ground_truth_error_where_changed"
    return [
        Bar(
            "Effectiveness ratio, macro over findings of more than 5 % prevalence",
            metric(measured, "effectiveness_ratio_macro[common]"),
            EFFECTIVENESS_COMMON,
            "higher",
        ),
        *(
            Bar(
                f"Ground-truth error against {words}",
                error,
                metric(measured, f"ground_truth_error[{baseline}]"),
                "lower",
                f"only where the exact edit changes something: {metric(measured, where).text} against "
                f"{metric(measured, f'{where}[{baseline}]').text}",
            )
            for baseline, words in (
                ("no edit", "no edit"),
                ("nearest training image", "the nearest training image with the findings"),
            )
        ),
        *(
            Bar(
                f"Area of {part.replace('_', ' ')} off the exact counterfactual's (median)",
                metric(measured, f"area_deviation[{part}]"),
                AREA,
                "lower",
            )
            for part in structures(measured)
        ),
    ]


def rare_bars(measured: Sequence[Measured]) -> list[Bar]:
    """The bars of table (c), of the rarest finding."""
    rarest = measured[0]["order"][0]
    words = rarest.replace("_", " ")
    seeds = [seed["findings"][rarest] for seed in measured]
    return [
        Bar(
            f"Effectiveness ratio of the rarest finding ({words}) with noise optimisation",
            Spread.of(seed["with"]["ratio"] for seed in seeds),
            EFFECTIVENESS_RAREST,
            "higher",
        ),
        Bar(
            f"Diversity of {words} with noise optimisation, of the real class's",
            Spread.of(seed["with"]["diversity"] for seed in seeds),
            DIVERSITY,
            "higher",
        ),
        *_printed_bar([seed["printed"] for seed in measured]),
    ]


def _printed_bar(printed: Sequence[Measured]) -> list[Bar]:
    """Algorithm 2's time over ours in the seeds where it arrives; no bar where it never does."""
    arrived = [each["times"] for each in printed if each["reached"] is not None]
    if not arrived:
        return []
    name = "Time of Algorithm 2 as printed until it is as near to its targets, over ours"
    note = (
        f"in {len(arrived)} of {len(printed)} seeds; in the others it never is"
        if len(arrived) < len(printed)
        else ""
    )
    return [Bar(name, Spread.of(arrived), TIMES, "higher", note)]


def never_arrived(measured: Sequence[Measured]) -> str:
    """The sentence on seeds in which Algorithm 2 as printed never comes as near as ours; empty without."""
    lost = [seed["printed"] for seed in measured if seed["printed"]["reached"] is None]
    if not lost:
        return ""
    most = max(int(each["trace"][-1]["iterations"]) for each in lost)
    times = min(each["times"] for each in lost)
    return (
        f"In {len(lost)} of {len(measured)} seeds Algorithm 2 as printed never comes as near to its targets "
        f"as ours does, in up to {most} iterations and at least {times:.0f} times our time."
    )


def utility_scores(measured: Sequence[Measured]) -> tuple[dict[str, Floats], tuple[str, ...]]:
    """Table (d): arm to ``[seeds, findings, measures]``, and the findings."""
    findings = tuple(measured[0]["findings"])
    arms = measured[0]["scores"]
    return {
        arm: np.array([seed["scores"][arm] for seed in measured], dtype=np.float64) for arm in arms
    }, findings
