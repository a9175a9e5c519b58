"""The pool: classifiers whose dependence on the attribute is dialled, so that the truth of each is known."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import expit
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from counterray.audits.errors import Codes
from counterray.audits.scores import CounterfactualScores, PlaceboUnit, Target
from counterray.audits.worlds.equations import LEVELS, Features, Individuals, World
from counterray.audits.worlds.generators import Generator
from counterray.evaluation.intervals import Floats

Kind = Literal["logistic", "linear_svc", "tree", "forest", "boosting", "mlp"]

STRENGTHS = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
"""How much of what a classifier sees is what A touches; 0 is invariant by construction."""

SEEDS_OF_KIND: dict[Kind, int] = {
    "logistic": 1,  # their seeds change nothing
    "linear_svc": 1,
    "tree": 2,
    "forest": 2,
    "boosting": 2,
    "mlp": 2,
}
"""Models of each kind and strength: ten a strength, sixty in all."""

SIMULATED = 10_000
"""Individuals by which true ECA is simulated: its standard error is at most 0.005."""


@dataclass(frozen=True)
class DialledClassifier:
    """A fitted classifier and how much it can lean on A.

    Attributes:
        name: Kind, strength and seed.
        kind: Kind of model.
        strength: s of `World.view`.
        model: The scikit-learn model.
    """

    name: str
    kind: Kind
    strength: float
    model: Any

    def scores(self, world: World, features: Features) -> Floats:
        """Probabilities ``[n]``; of a support vector machine the sigmoid of its margin."""
        view = world.view(features, self.strength)
        if hasattr(self.model, "predict_proba"):
            found: Floats = self.model.predict_proba(view)[:, 1]
            return found
        return np.asarray(expit(self.model.decision_function(view)), dtype=np.float64)


def fit_pool(
    world: World, learning: Individuals, *, strengths: Sequence[float] = STRENGTHS, seed: int = 0
) -> list[DialledClassifier]:
    """Sixty classifiers, each kind at each strength, fitted to the observed rows and their labels."""
    seen, labels = world.features(learning), world.labels(learning)
    pool = []
    for strength in strengths:
        view = world.view(seen, strength)
        for kind, repeats in SEEDS_OF_KIND.items():
            for repeat in range(repeats):
                model = _model(kind, seed * 1000 + repeat)
                with warnings.catch_warnings():
                    # The published pool stops its networks and margins at a fixed count, converged or not.
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    model.fit(view, labels)
                pool.append(DialledClassifier(f"{kind} s={strength:g} #{repeat}", kind, strength, model))
    return pool


def pool_scores(
    world: World,
    pool: Sequence[DialledClassifier],
    individuals: Individuals,
    generator: Generator,
    *,
    repeats: int = 1,
    null_generators: Sequence[Generator] = (),
) -> CounterfactualScores:
    """What the pool says of individuals, observed and at each level; counterfactuals are made once for all.

    Args:
        world: The world.
        pool: The classifiers.
        individuals: Who is audited; rows that no classifier was fitted on.
        generator: What makes their counterfactuals.
        repeats: Null interventions by the generator itself.
        null_generators: Generators trained on shuffled levels, which take their place.
    """
    own = individuals.own
    levels = [np.full(len(own), level) for level in range(len(LEVELS))]
    made = [generator.counterfactual(individuals, level, draw=k) for k, level in enumerate(levels)]
    unit: PlaceboUnit = "generator" if null_generators else "individual"
    if null_generators:
        null = [each.counterfactual(individuals, 1 - own, draw=0) for each in null_generators]
    else:
        draws = range(len(LEVELS), len(LEVELS) + repeats)
        null = [generator.counterfactual(individuals, own, draw=draw) for draw in draws]
    seen, labels = world.features(individuals), world.labels(individuals).astype(np.float64)
    return CounterfactualScores(
        attribute="A",
        levels=LEVELS,
        targets=[Target(classifier=each.name, finding="y") for each in pool],
        observed=np.stack([each.scores(world, seen) for each in pool]),
        intervened=_stacked(world, pool, made),
        placebo=_stacked(world, pool, null),
        own=own,
        labels=np.tile(labels, (len(pool), 1)),
        patients=[f"{row:06d}" for row in range(len(own))],
        placebo_unit=unit,
    )


def true_accuracy(
    world: World, pool: Sequence[DialledClassifier], *, individuals: int = SIMULATED, seed: int = 1
) -> Floats:
    """True ECA over changed levels, ``[T]``: decisions that survive ``do(1 - A)``, simulated."""
    drawn = world.individuals(individuals, seed=2**30 + seed)
    sides = [world.features(drawn, level) for level in (drawn.own, 1 - drawn.own)]
    said = _stacked(world, pool, sides) >= 0.5
    same: Floats = (said[..., 0] == said[..., 1]).mean(axis=1)
    return same


def _stacked(world: World, pool: Sequence[DialledClassifier], made: Sequence[Features]) -> Floats:
    return np.stack([[each.scores(world, part) for part in made] for each in pool]).transpose(0, 2, 1)


def _model(kind: Kind, seed: int) -> Any:
    """Hyperparameters of the paper's Table 1, as far as its code has them."""
    match kind:
        case "logistic":
            return LogisticRegression()
        case "linear_svc":
            return LinearSVC(random_state=seed)
        case "tree":
            return DecisionTreeClassifier(max_depth=5, random_state=seed)
        case "forest":
            return RandomForestClassifier(n_estimators=50, random_state=seed)
        case "boosting":
            return GradientBoostingClassifier(random_state=seed)
        case "mlp":
            return MLPClassifier(hidden_layer_sizes=(16, 8, 4), max_iter=500, random_state=seed)


def own_decisions(scores: CounterfactualScores) -> Codes:
    """Decisions ``[T, N]`` on the observed rows, 0 or 1, as the associational audits take them."""
    cut = np.array([target.threshold for target in scores.targets])[:, None]
    return (scores.observed >= cut).astype(np.int64)
