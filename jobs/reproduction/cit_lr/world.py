"""One world: its pool fitted, its truth simulated, and every audit's word on every classifier."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from counterray.audits.cit_lr import CitLr, Rows, cit_lr
from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.demographic_parity import demographic_parity
from counterray.audits.equal_opportunity import equal_opportunity
from counterray.audits.errors import Codes
from counterray.audits.findings import EffectAudit
from counterray.audits.group_gaps import Reading
from counterray.audits.settings import AuditConfig
from counterray.audits.worlds.equations import LEVELS, Individuals, World
from counterray.audits.worlds.generators import ExactGenerator, Generator, StructuralModel
from counterray.audits.worlds.pool import DialledClassifier, fit_pool, pool_scores, true_accuracy
from counterray.evaluation.intervals import Floats
from jobs.reproduction.cit_lr.experiment import WorldRun

Result = TypeVar("Result")

NO_GATES = {
    name: "a tabular generator, whose counterfactuals are compared with the truth"
    for name in ("effectiveness", "composition", "off_target", "identity", "judge_auroc")
}
"""No judge reads a table; tables of this experiment show how good the generator is."""


def measure_world(run: WorldRun) -> dict[str, Any]:
    """Every method on every classifier of one world.

    Returns:
        ``classifiers``: name, kind, strength, true ``eca``, ``eca_shipped``, and each method's number;
        ``seconds``: CPU seconds of each part, on one core; ``positives``: share of positive labels.
    """
    torch.set_num_threads(1)  # CPU seconds are compared with those of another program
    clock = _Clock()
    experiment = run.experiment
    world = World(run.config)
    drawn = world.individuals(experiment.individuals, seed=run.seed)
    cut = round(experiment.learning * len(drawn))
    learning, audited = drawn.select(slice(0, cut)), drawn.select(slice(cut, len(drawn)))
    pool = clock("pool", lambda: fit_pool(world, learning, strengths=experiment.strengths, seed=run.seed))
    truth = clock("truth", lambda: true_accuracy(world, pool, individuals=experiment.simulated))
    shipped_truth = _shipped_accuracy(world, pool, audited, seed=run.seed)
    said, said_before = _rows(world, pool, audited), _rows(world, pool, learning)
    shipped = clock(
        "cit_lr_shipped",
        lambda: cit_lr(said, experiment.shipped, attribute="A", levels=LEVELS, learning=said_before),
    )
    corrected = clock(
        "cit_lr_corrected", lambda: cit_lr(said, experiment.corrected, attribute="A", levels=LEVELS)
    )
    columns = {
        **_tests(shipped, corrected),
        **clock("associational", lambda: _associational(said, world.labels(audited), run.seed)),
    }
    generators: dict[str, Generator] = {
        "exact": ExactGenerator(world),
        "learned": StructuralModel(world, learning),
    }
    for name, generator in generators.items():
        columns |= _effects(world, pool, audited, name, generator, experiment.audit, clock)
    classifiers = [
        {
            "name": each.name,
            "kind": each.kind,
            "strength": each.strength,
            "eca": float(truth[k]),
            "eca_shipped": float(shipped_truth[k]),
            **{name: values[k] for name, values in columns.items()},
        }
        for k, each in enumerate(pool)
    ]
    positives = float(world.labels(drawn).mean())
    return {"classifiers": classifiers, "seconds": clock.seconds, "positives": positives}


class _Clock:
    """CPU seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str, work: Callable[[], Result]) -> Result:
        started = time.process_time()
        result = work()
        self.seconds[part] = round(time.process_time() - started, 2)
        return result


def _rows(world: World, pool: list[DialledClassifier], individuals: Individuals) -> Rows:
    seen = world.features(individuals)
    return Rows(
        predictions=np.stack([each.scores(world, seen) >= 0.5 for each in pool]).astype(np.float64),
        groups=individuals.own,
        representation=world.representation(individuals),
        patients=[f"{row:06d}" for row in range(len(individuals))],
    )


def _shipped_accuracy(
    world: World, pool: list[DialledClassifier], individuals: Individuals, *, seed: int
) -> Floats:
    """ECA as the published code has it, ``[T]``: against counterfactuals of matrices drawn anew."""
    sides = world.features(individuals), world.shipped_counterfactual(individuals, seed=seed)
    said = np.array([[each.scores(world, side) >= 0.5 for side in sides] for each in pool])
    same: Floats = (said[:, 0] == said[:, 1]).mean(axis=1)
    return same


def _tests(shipped: CitLr, corrected: CitLr) -> dict[str, list[float]]:
    return {
        "cit_lr_shipped": shipped.p_value.tolist(),
        "cit_lr_two_sample": shipped.p_two_sample.tolist(),
        "cit_lr_corrected": corrected.p_value.tolist(),
        "orthogonal_p": corrected.p_orthogonal.tolist(),
        "orthogonal_effect": corrected.effect.tolist(),
    }


def _associational(said: Rows, labels: Codes, seed: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"dp_shipped": [], "eo_shipped": [], "dp_welch": []}
    readings: tuple[tuple[str, Reading], ...] = (("dp_shipped", "as_shipped"), ("dp_welch", "corrected"))
    for k, decisions in enumerate(said.predictions):
        for name, reading in readings:
            audit = demographic_parity(
                decisions,
                said.groups,
                attribute="A",
                levels=LEVELS,
                patients=said.patients,
                reading=reading,
                seed=seed * 1000 + 2 * k,
            )
            found[name].append(audit.p_value)
        opportunity = equal_opportunity(
            decisions,
            labels,
            said.groups,
            attribute="A",
            levels=LEVELS,
            patients=said.patients,
            reading="as_shipped",
            seed=seed * 1000 + 2 * k,
        )
        found["eo_shipped"].append(opportunity.p_value)
    return found


def _effects(
    world: World,
    pool: list[DialledClassifier],
    audited: Individuals,
    name: str,
    generator: Generator,
    config: AuditConfig,
    clock: _Clock,
) -> dict[str, list[Any]]:
    scores = clock(f"generation_{name}", lambda: pool_scores(world, pool, audited, generator))
    audit: EffectAudit = clock(
        f"effect_{name}", lambda: counterfactual_effect(scores, without_gates(config), readings=[])
    )
    found = {finding.target.name: finding for finding in audit.findings}
    rows = [found.get(target.name) for target in scores.targets]  # None: refused, such as a constant
    return {
        f"effect_{name}": [row.numbers["flip"].value if row else 0.0 for row in rows],
        f"p_{name}": [row.p_value if row else None for row in rows],
        f"verdict_{name}": [row.verdict if row else "refused" for row in rows],
        f"absolute_{name}": [row.numbers["absolute"].value if row else 0.0 for row in rows],
    }


def without_gates(config: AuditConfig) -> AuditConfig:
    """The same audit with every gate waived, as `NO_GATES` explains."""
    return config.model_copy(update={"gates": config.gates.model_copy(update={"waived": NO_GATES})})
