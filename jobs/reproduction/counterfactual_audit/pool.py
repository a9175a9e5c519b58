"""One seed: classifiers of known truth, and what every audit says of each."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.decomposition import PCA

from counterray.audits.cit_lr import Rows, cit_lr
from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.demographic_parity import demographic_parity
from counterray.audits.equal_opportunity import equal_opportunity
from counterray.audits.errors import AuditError
from counterray.audits.findings import EffectAudit
from counterray.audits.image_worlds import ImagePool, PairTruth, image_pool, image_pool_scores
from counterray.audits.scores import CounterfactualScores
from counterray.audits.settings import MarginConfig
from counterray.audits.worlds.level_images import LevelImages, render_levels
from counterray.bundle import open_bundle
from counterray.config import validate
from counterray.data.phantom.studies import make_batch
from counterray.evaluation.intervals import Floats
from counterray.models.mine_ldm.generator import GenerationConfig, open_ldm
from counterray.models.mine_ldm.model import MineLDM
from jobs.reproduction.counterfactual_audit.experiment import Experiment, PoolRun
from jobs.reproduction.counterfactual_audit.generating import (
    AT_ONCE,
    Counterfactuals,
    exact,
    generated,
    untrained,
)
from jobs.reproduction.counterfactual_audit.judging import Judges

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_AUDITED_SEED = 2**22
"""Added to the pool's seed for the individuals who are audited: nobody has learned from them."""


def measure_pool(run: PoolRun) -> dict[str, Any]:
    """Every audit's word on every classifier of one seed.

    Returns:
        ``classifiers``: name, kind, strength, finding, ``truth`` (its verdict, and for each pair of levels
        what changing it truly does), ``size`` (its largest true effect, in margins), ``audits`` (generator to
        verdicts and measured effects) and ``tests`` (CIT-LR, DP and EO to their p-values, ``None`` where
        refused); ``gates`` of each generator; ``seconds``: CPU seconds of each part, on one core.
    """
    torch.set_num_threads(1)  # CPU seconds are of one core
    experiment, seconds = run.experiment, dict[str, float]()
    pool = _timed(seconds, "pool", lambda: image_pool(run.pool))
    drawn = make_batch(experiment.individuals, run.pool.image_size, run.pool.seed + _AUDITED_SEED)
    about: dict[str, Any] = {"attribute": run.pool.attribute, "levels": run.pool.levels or None}
    individuals = _timed(seconds, "individuals", lambda: render_levels(drawn, **about))
    model = open_ldm(open_bundle(run.generator), validate(GenerationConfig, experiment.generation))
    judges = Judges({stage: open_bundle(uri) for stage, uri in run.judges.items()})
    audits = {}
    for name, make in _generators(run, model, individuals).items():
        made = _timed(seconds, f"images_{name}", make)
        audit = partial(_audit, experiment, pool, individuals, made, judges)
        audits[name] = _timed(seconds, f"audit_{name}", audit)
        logger.info("seed %d: audited with %s counterfactuals", run.seed, name)
    observed = image_pool_scores(pool.classifiers, individuals)
    tests = _timed(seconds, "tests", lambda: _tests(experiment, observed, individuals, model))
    margins = experiment.audit.margins
    return {
        "classifiers": [
            {
                "name": each.name,
                "kind": each.kind,
                "strength": each.strength,
                "finding": each.finding,
                "truth": _truth(pool.truths[k], margins),
                "size": max(in_margins(truth, margins) for truth in pool.truths[k]),
                "audits": {name: _word(audit, each.target.name) for name, audit in audits.items()},
                "tests": {name: values[k] for name, values in tests.items()},
            }
            for k, each in enumerate(pool.classifiers)
        ],
        "gates": {name: [gate.as_json() for gate in audit.gates] for name, audit in audits.items()},
        "levels": np.bincount(individuals.own, minlength=len(individuals.levels)).tolist(),
        "seconds": seconds,
    }


def in_margins(truth: PairTruth, margins: MarginConfig) -> float:
    """The largest of a pair's true effects, each as a multiple of its margin; invariant is below 1."""
    return float(margins.size(mean=truth.mean, absolute=truth.absolute, flip_rate=truth.flip_rate))


def _timed(seconds: dict[str, float], part: str, work: Callable[[], Result]) -> Result:
    started = time.process_time()
    result = work()
    seconds[part] = round(time.process_time() - started, 2)
    return result


def _generators(
    run: PoolRun, model: MineLDM, individuals: LevelImages
) -> dict[str, Callable[[], Counterfactuals]]:
    nulls, seed = run.experiment.nulls, run.seed
    return {
        "exact": lambda: exact(individuals),
        "learned": lambda: generated(model, individuals, nulls=nulls, seed=seed),
        "untrained": lambda: generated(untrained(model, seed=seed), individuals, nulls=nulls, seed=seed),
        "shuffled": lambda: generated(model, individuals, nulls=nulls, seed=seed, shuffled=True),
    }


def _audit(
    experiment: Experiment, pool: ImagePool, individuals: LevelImages, made: Counterfactuals, judges: Judges
) -> EffectAudit:
    scores = image_pool_scores(pool.classifiers, individuals, intervened=made.images, placebo=made.null)
    readings = judges.readings(individuals, made.images)
    return counterfactual_effect(scores, experiment.audit, readings=readings)


def _truth(truths: Sequence[PairTruth], margins: MarginConfig) -> dict[str, Any]:
    verdicts = {f"{truth.first} {truth.second}": truth.verdict(margins) for truth in truths}
    return {
        "verdict": "depends" if "depends" in verdicts.values() else "invariant",
        "pairs": {
            f"{truth.first} {truth.second}": {
                "verdict": truth.verdict(margins),
                "mean": truth.mean,
                "absolute": truth.absolute,
                "flip": truth.flip_rate,
            }
            for truth in truths
        },
    }


def _word(audit: EffectAudit, target: str) -> dict[str, Any]:
    """An audit's verdicts on one classifier, with the effects that it saw."""
    if target in audit.refused:
        return {"verdict": "refused", "reason": audit.refused[target], "pairs": {}}
    found = [finding for finding in audit.findings if finding.target.name == target]
    return {
        "verdict": audit.verdicts()[target],
        "pairs": {
            f"{finding.first} {finding.second}": {
                "verdict": finding.verdict,
                **{name: finding.numbers[name].value for name in ("mean", "absolute", "flip", "placebo")},
            }
            for finding in found
        },
    }


def _tests(
    experiment: Experiment, scores: CounterfactualScores, individuals: LevelImages, model: MineLDM
) -> dict[str, list[float | None]]:
    """p-values of what sees observed images alone; ``None`` where a level has too few patients."""
    cut = np.array([target.threshold for target in scores.targets])[:, None]
    decisions = scores.observed >= cut
    shared: dict[str, Any] = {
        "attribute": scores.attribute,
        "levels": scores.levels,
        "minimum_patients": experiment.least_patients,
    }
    rows = Rows(
        predictions=decisions.astype(np.float64),
        groups=scores.own,
        representation=_representation(model, individuals, experiment.components),
        patients=scores.patients,
    )
    test = cit_lr(rows, experiment.cit_lr, **shared)
    found: dict[str, list[float | None]] = {
        "cit_lr": _finite(test.p_value),
        "orthogonal": _finite(test.p_orthogonal),
        "dp": [],
        "eo": [],
    }
    for k, called in enumerate(decisions):
        parity = demographic_parity(called, scores.own, patients=scores.patients, **shared)
        found["dp"].append(parity.p_value)
        try:
            opportunity = equal_opportunity(
                called, scores.labels[k], scores.own, patients=scores.patients, **shared
            )
            found["eo"] += _finite(np.array([opportunity.p_value]))
        except AuditError:
            found["eo"].append(None)
    return found


@torch.no_grad()
def _representation(model: MineLDM, individuals: LevelImages, components: int) -> Floats:
    """Z: the leading principal components of T(u), ``[N, components]``, of unit variance."""
    images = individuals.batch.image.split(AT_ONCE)  # type: ignore[no-untyped-call]
    parts = [model.encode(part) for part in images]
    flat = torch.cat(parts).flatten(1).double().cpu().numpy()
    return np.asarray(PCA(components, whiten=True, random_state=0).fit_transform(flat), dtype=np.float64)


def _finite(values: Floats) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
