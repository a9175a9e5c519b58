"""How often the counterfactual audit errs, over freshly drawn worlds and patients whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.findings import PairFinding
from counterray.audits.scores import CounterfactualScores
from counterray.audits.settings import AuditConfig
from counterray.audits.worlds.equations import Individuals, World, WorldConfig
from counterray.audits.worlds.generators import ExactGenerator, Generator, StructuralModel
from counterray.audits.worlds.pool import DialledClassifier, pool_scores
from jobs.reproduction.cit_lr.experiment import (
    PHANTOM,
    Calibration,
    CalibrationRun,
    PhantomCalibration,
    Setting,
)
from jobs.reproduction.cit_lr.phantom import PhantomGenerator, PhantomPool, phantom_scores
from jobs.reproduction.cit_lr.world import without_gates

ALPHA = 0.05

_REDRAWN = 100_000
"""What is added to a world's seed to draw another one in its place."""


def measure_calibration(run: CalibrationRun) -> dict[str, Any]:
    """Rates over replicates, each a logistic classifier and its audit in a world drawn anew.

    On the phantom each is a classifier, a generator and an audit of patients drawn anew from one pool.

    Returns:
        ``rejected``: share of p-values of dependence up to 0.05; ``invariant``: share of replicates
        found equivalent within the margins; ``depends``: share of verdicts "depends"; ``replicates``.
    """
    settings = run.experiment.calibration
    torch.set_num_threads(1)
    audit = without_gates(run.experiment.audit)
    if run.setting in PHANTOM:
        findings = phantom_replicates(run.setting, run.experiment.phantom, settings, audit)
    else:
        findings = [replicate(run.setting, settings, audit, seed=seed) for seed in range(settings.replicates)]
    return {
        "setting": run.setting,
        "replicates": len(findings),
        "rejected": _rejected([found.p_value for found in findings]),
        "rejected_delta": _rejected([found.p_delta for found in findings]),
        "invariant": _share([found.verdict == "invariant" for found in findings]),
        "depends": _share([found.verdict == "depends" for found in findings]),
    }


def replicate(setting: Setting, settings: Calibration, config: AuditConfig, *, seed: int) -> PairFinding:
    """One world, one classifier and its audit."""
    config = _of_replicate(config, settings, seed)
    scores, world_seed = None, seed
    while scores is None:
        scores = _scores(setting, settings, config, seed=seed, world_seed=world_seed)
        world_seed += _REDRAWN
    [finding] = counterfactual_effect(scores, config, readings=[]).findings
    return finding


def phantom_replicates(
    setting: Setting, phantom: PhantomCalibration, settings: Calibration, config: AuditConfig
) -> list[PairFinding]:
    """Each of freshly drawn patients of one pool, with one classifier and its audit."""
    generator = _PHANTOM_GENERATORS[setting]
    pool = PhantomPool.render(phantom, exact=generator == "exact_redrawn")
    findings = list[PairFinding]()
    for seed in range(settings.replicates):
        scores = phantom_scores(pool, generator, phantom, seed=seed)
        audit = counterfactual_effect(scores, _of_replicate(config, settings, seed), readings=[])
        findings.extend(audit.findings)
    return findings


_PHANTOM_GENERATORS: Mapping[Setting, PhantomGenerator] = {
    "phantom_exact_redrawn": "exact_redrawn",
    "phantom_learned": "learned",
    "phantom_learned_alone": "learned_alone",
}


def _of_replicate(config: AuditConfig, settings: Calibration, seed: int) -> AuditConfig:
    return config.model_copy(
        update={"seed": seed, "permutations": settings.permutations, "resamples": settings.resamples}
    )


def _scores(
    setting: Setting, settings: Calibration, config: AuditConfig, *, seed: int, world_seed: int
) -> CounterfactualScores | None:
    """Of one world; ``None`` where it has no classifier such as the setting asks for."""
    has_effect = setting in ("power", "false_equivalence")
    world = World(
        WorldConfig(name="linear", seed=world_seed)
        if has_effect
        else WorldConfig(name="linear", noise=settings.noise, seed=world_seed)
    )
    learning = world.individuals(settings.learning, seed=0)
    audited = world.individuals(settings.individuals, seed=1)
    if has_effect:
        effect = settings.effect if setting == "power" else config.margins.absolute_effect
        return _with_effect(world, learning, audited, effect)
    generator, null = _generators(setting, world, learning, settings, seed=seed)
    pool = [_logistic(world, learning, strength=0.0)]
    return pool_scores(world, pool, audited, generator, null_generators=null)


def _generators(
    setting: Setting, world: World, learning: Individuals, settings: Calibration, *, seed: int
) -> tuple[Generator, list[Generator]]:
    match setting:
        case "exact_abducted":
            return ExactGenerator(world), []
        case "exact_redrawn":
            return ExactGenerator(world, noise="redrawn"), []
        case "learned_abducted":
            return StructuralModel(world, learning), []
        case "learned_redrawn":
            return StructuralModel(world, learning, noise="redrawn", seed=seed), []
        case _:
            null: list[Generator] = [
                StructuralModel(world, learning, graph="unknown", shuffled=k)
                for k in range(settings.null_generators)
            ]
            return StructuralModel(world, learning, graph="unknown"), null


def _logistic(world: World, learning: Individuals, *, strength: float) -> DialledClassifier:
    view = world.view(world.features(learning), strength)
    model = LogisticRegression().fit(view, world.labels(learning))
    return DialledClassifier(f"logistic s={strength:g}", "logistic", strength, model)


def _with_effect(
    world: World, learning: Individuals, audited: Individuals, effect: float
) -> CounterfactualScores | None:
    """Scores of a classifier whose true mean ``|effect|`` is ``effect``; ``None`` if none moves so far.

    ``(1 - w) h_0 + w h_1`` of an invariant and a dependent classifier moves by ``w`` times what h_1 moves,
    whose mean is simulated.
    """
    many = world.individuals(4000, seed=2)
    pool = [_logistic(world, learning, strength=strength) for strength in (0.0, 1.0)]
    zero, one = (pool[1].scores(world, world.features(many, np.full(len(many), level))) for level in (0, 1))
    share = effect / np.abs(one - zero).mean()
    if share > 1:  # the mixture would be no probability
        return None
    scores = pool_scores(world, pool, audited, ExactGenerator(world, noise="redrawn"))
    weights = np.array([1 - share, share])
    return replace(
        scores.select([0]),
        observed=np.tensordot(weights, scores.observed, axes=1)[None],
        intervened=np.tensordot(weights, scores.intervened, axes=1)[None],
        placebo=np.tensordot(weights, scores.placebo, axes=1)[None],
    )


def _rejected(p_values: list[float]) -> float:
    """Share up to 0.05; NaN where there is no such test, as with null generators."""
    return _share([p <= ALPHA for p in p_values]) if all(map(math.isfinite, p_values)) else math.nan


def _share(hits: list[bool]) -> float:
    return float(np.mean(hits))
