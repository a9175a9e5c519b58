"""What was measured, as tables: correlations with the truth, rejections by strength, verdicts, bars."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, spearmanr
from scipy.stats import t as student

from counterray.evaluation.intervals import CONFIDENCE
from jobs.reproduction.bars import Bar, Measured, Spread
from jobs.reproduction.cit_lr.experiment import METHODS, SETTINGS, Experiment, Setting

EFFECTS = {"orthogonal_effect", "effect_exact", "effect_learned"}
"""Methods whose number is an effect; of the others it is a p-value."""

P_VALUES = {"effect_exact": "p_exact", "effect_learned": "p_learned"}
"""Methods with an effect, to the p-value beside it."""

AS_SHIPPED = ("cit_lr_shipped", "cit_lr_two_sample", "dp_shipped", "eo_shipped")
"""Methods that have to agree with the earlier measurement; of the others only the idea is the same."""

ALPHA = 0.05
EXACT, LEARNED = 0.95, 0.8
POWER, FALSE_EQUIVALENCE, BAND = 0.9, 0.05, 0.02
REFERENCE_SEEDS = 2
SHARE_OF_SHIPPED = 0.2
SHIPPED_SECONDS = 55.0
"""The bars: Spearman correlations of the flip rate with 1 - true ECA; power; false equivalence; distance of
the type I error from 0.05; seeds of the earlier measurement; CPU time of a pool's statistics over that of
the published program, which was measured as 55 CPU-seconds for a world of 60 models and 1000 individuals."""

TYPE_ONE: tuple[Setting, ...] = (
    "exact_redrawn",
    "learned_redrawn",
    "learned_without_graph",
    "phantom_exact_redrawn",
    "phantom_learned",
)
"""Settings whose type I error has a bar; where noise is kept nothing moves, and nothing can be rejected. A
learned generator judged by its own null interventions has none: its errors are shared by all individuals, so
its p-values are about the generator as much as the classifier; the rate is stated, and margins and gates have
to answer for the verdict."""


def correlation(measured: Measured, method: str) -> float:
    """Spearman correlation of a method's number with 1 - true ECA over the pool; of p it is -log10 p.

    A p-value that the published code cannot compute counts as 1. NaN where the method says the same of all.
    """
    rows = measured["classifiers"]
    values = [row[method] for row in rows]
    if method not in EFFECTS:
        values = [0.0 if p is None else -math.log10(max(p, 1e-300)) for p in values]
    truth = [1 - row["eca"] for row in rows]
    if np.ptp(values) == 0 or np.ptp(truth) == 0:
        return math.nan
    return float(spearmanr(values, truth).statistic)


def correlations(
    experiment: Experiment, worlds: Mapping[str, Sequence[Measured]]
) -> dict[str, dict[str, Spread]]:
    """World to method to its correlation, over seeds."""
    return {
        name: {method: Spread.of(correlation(seed, method) for seed in worlds[name]) for method in METHODS}
        for name in experiment.worlds
    }


def distances(
    experiment: Experiment, worlds: Mapping[str, Sequence[Measured]]
) -> dict[str, dict[str, float]]:
    """Method to world to the distance of its correlation from the earlier measurement's, in standard errors.

    ``|mean - earlier| / (s √(1 / S + 1 / S'))`` with S and S' seeds here and there, and s the standard
    deviation between seeds here, pooled over worlds. NaN with one seed.
    """
    found = correlations(experiment, worlds)
    seeds = len(experiment.seeds)
    result: dict[str, dict[str, float]] = {}
    for method in METHODS:
        known: dict[str, float] = {
            name: row[method] for name, row in experiment.reference.items() if method in row
        }
        spreads = [found[name][method] for name in known if name in found]
        if not spreads:
            continue
        pooled = math.sqrt(float(np.mean([spread.deviation**2 for spread in spreads])))
        error = pooled * math.sqrt(1 / seeds + 1 / REFERENCE_SEEDS)
        result[method] = {
            name: abs(found[name][method].mean - earlier) / error if error > 0 else math.nan
            for name, earlier in known.items()
            if name in found
        }
    return result


def by_strength(experiment: Experiment, worlds: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    """For each strength: classifiers, true ECA, and the share that each test rejects at 0.05."""
    rows = [row for seeds in worlds.values() for seed in seeds for row in seed["classifiers"]]
    found = []
    for strength in experiment.strengths:
        here = [row for row in rows if row["strength"] == strength]
        rejected = {
            method: float(np.mean([_rejects(row.get(P_VALUES.get(method, method))) for row in here]))
            for method in METHODS
            if method != "orthogonal_effect"
        }
        found.append(
            {
                "strength": strength,
                "classifiers": len(here),
                "eca": float(np.mean([row["eca"] for row in here])),
                "eca_shipped": float(np.mean([row["eca_shipped"] for row in here])),
                "rejected": rejected,
                "verdicts": {
                    name: dict(Counter(row[f"verdict_{name}"] for row in here))
                    for name in ("exact", "learned")
                },
            }
        )
    return found


def seconds(worlds: Mapping[str, Sequence[Measured]]) -> dict[str, Spread]:
    """CPU seconds of each part for one world, over all worlds and seeds."""
    each = [seed["seconds"] for seeds in worlds.values() for seed in seeds]
    return {part: Spread.of(one[part] for one in each) for part in each[0]}


def bars(
    experiment: Experiment,
    worlds: Mapping[str, Sequence[Measured]],
    calibration: Mapping[Setting, Measured],
) -> list[Bar]:
    """Every bar."""
    found = correlations(experiment, worlds)
    spent = seconds(worlds)["effect_exact"]
    return [
        *(
            Bar(
                f"Flip rate against 1 - true ECA, {words} counterfactuals, {name}", row[method], bar, "higher"
            )
            for method, words, bar in (
                ("effect_exact", "exact", EXACT),
                ("effect_learned", "learned", LEARNED),
            )
            for name, row in found.items()
        ),
        *_agreement_bars(experiment, worlds),
        *(_type_one_bar(setting, calibration[setting]) for setting in TYPE_ONE),
        Bar(
            "Power at a true mean |effect| of "
            f"{experiment.calibration.effect:g}, n = {experiment.calibration.individuals}",
            Spread((calibration["power"]["rejected"],)),
            POWER,
            "higher",
            share_text(calibration["power"]["rejected"], calibration["power"]["replicates"]),
        ),
        Bar(
            f"False equivalence at the margin, n = {experiment.calibration.individuals}",
            Spread((calibration["false_equivalence"]["invariant"],)),
            FALSE_EQUIVALENCE,
            "lower",
            share_text(
                calibration["false_equivalence"]["invariant"], calibration["false_equivalence"]["replicates"]
            ),
        ),
        Bar(
            "CPU time of a pool's statistics, of the published program's",
            Spread(tuple(value / SHIPPED_SECONDS for value in spent.values)),
            SHARE_OF_SHIPPED,
            "lower",
            f"{spent.text} s for {len(next(iter(worlds.values()))[0]['classifiers'])} classifiers",
        ),
    ]


def _agreement_bars(experiment: Experiment, worlds: Mapping[str, Sequence[Measured]]) -> list[Bar]:
    """The furthest world of each method; the bar is a t-test of all worlds at 0.05 by Bonferroni.

    None with one seed, which has no spread.
    """
    if len(experiment.seeds) < 2:
        return []
    found = []
    apart = distances(experiment, worlds)
    for method in (name for name in AS_SHIPPED if name in apart):
        by_world = apart[method]
        freedom = len(by_world) * (len(experiment.seeds) - 1)
        limit = float(student.ppf(1 - ALPHA / (2 * len(by_world)), freedom))
        furthest = max(by_world, key=lambda name: by_world[name])
        found.append(
            Bar(
                f"Correlations of {METHODS[method]} off the earlier measurement's [standard errors]",
                Spread((by_world[furthest],)),
                limit,
                "lower",
                f"furthest: {furthest}",
            )
        )
    return found


def share_text(share: float, replicates: int) -> str:
    """A share with its exact (Clopper-Pearson) 95 % interval, such as ``0.050 [0.036, 0.067]``."""
    low, high = binomtest(round(share * replicates), replicates).proportion_ci(CONFIDENCE, method="exact")
    return f"{share:.3f} [{low:.3f}, {high:.3f}]"


def _type_one_bar(setting: Setting, measured: Measured) -> Bar:
    """Of the p-value that verdicts use."""
    count = measured["replicates"]
    return Bar(
        f"Type I error off 0.05: {SETTINGS[setting]}",
        Spread((abs(measured["rejected"] - ALPHA),)),
        BAND,
        "lower",
        f"{share_text(measured['rejected'], count)}, “depends” in {measured['depends']:.3f} of {count}",
    )


def _rejects(p_value: float | None) -> bool:
    return p_value is not None and p_value <= ALPHA
