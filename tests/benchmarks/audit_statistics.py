"""CPU time of an audit's statistics for sixty classifiers: ``python tests/benchmarks/audit_statistics.py``.

Goal: on 1,000 individuals, bootstrap included, at most a fifth of the 55 CPU-seconds that the published
program takes for a world of 60 models and n = 1,000. The peer in the same run is its test on the same pool,
CIT-LR as shipped with networks of 1,000 epochs, fitted side by side and not one after the other as there:
the ratio to the published program itself is smaller. Processor time of one core is counted, so that other
work on the machine blurs the figures less.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import torch

from counterray.audits.cit_lr import CitLrConfig, Rows, cit_lr
from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.scores import CounterfactualScores
from counterray.audits.settings import AuditConfig, GateConfig
from counterray.audits.worlds.equations import LEVELS, World, WorldConfig
from counterray.audits.worlds.generators import StructuralModel
from counterray.audits.worlds.pool import fit_pool, own_decisions, pool_scores

GOAL = 11.0
GATES = GateConfig(
    waived=dict.fromkeys(("effectiveness", "composition", "off_target", "identity", "judge_auroc"), "a table")
)


def seconds(work) -> tuple[float, float]:
    """Processor and wall time."""
    started = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - started[0], time.perf_counter() - started[1]


def three_levels(scores: CounterfactualScores) -> CounterfactualScores:
    """The same with a third level half-way between the two, and a third of the individuals observed there."""
    middle = scores.intervened.mean(axis=-1, keepdims=True)
    own = np.where(np.arange(len(scores)) % 3 == 2, 2, scores.own)
    return replace(
        scores,
        levels=(*scores.levels, "a2"),
        own=own,
        intervened=np.concatenate([scores.intervened, middle], axis=-1),
    )


def main() -> None:
    torch.set_num_threads(1)
    world = World(WorldConfig(name="linear"))
    learning, audited = world.individuals(800, seed=0), world.individuals(1000, seed=1)
    pool = fit_pool(world, learning)
    generator = StructuralModel(world, learning, noise="redrawn")  # placebos that move, so that all is tested
    scores = pool_scores(world, pool, audited, generator)
    config = AuditConfig(gates=GATES)
    counterfactual_effect(scores.select([0]), config, readings=[])  # imports and caches

    found = {
        f"counterfactual_effect, {len(pool)} x {len(part)} x {len(part.levels)} levels": seconds(
            lambda part=part: counterfactual_effect(part, config, readings=[])
        )
        for part in (scores, three_levels(scores))
    }
    shown = world.individuals(200, seed=2)
    before, after = (pool_scores(world, pool, each, generator) for each in (learning, shown))

    def rows(individuals, said) -> Rows:
        return Rows(
            predictions=own_decisions(said).astype(np.float64),
            groups=individuals.own,
            representation=world.representation(individuals),
            patients=said.patients,
        )

    peer, _ = seconds(
        lambda: cit_lr(
            rows(shown, after),
            CitLrConfig.as_shipped(),
            attribute="A",
            levels=LEVELS,
            learning=rows(learning, before),
        )
    )
    sys.stdout.write(f"CIT-LR as shipped, {len(pool)} x (800 + 200): {peer:.1f} CPU-s\n")
    for name, (spent, wall) in found.items():
        goal = f", {spent / GOAL:.2f} of the goal" if name.endswith("2 levels") else ""
        sys.stdout.write(f"{name}: {spent:.2f} CPU-s, {wall:.2f} s, {spent / peer:.3f} of the peer{goal}\n")


if __name__ == "__main__":
    main()
