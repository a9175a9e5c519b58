"""Generators of counterfactuals in the tabular worlds: the exact one, and one learned from observed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from sklearn.linear_model import LinearRegression

from counterray.audits.errors import AuditError, Codes
from counterray.audits.worlds.equations import Features, Individuals, World
from counterray.evaluation.intervals import Floats

Noise = Literal["abducted", "redrawn"]
"""Whether an individual's measurement noise is kept, or drawn anew at each generation."""


class Generator(Protocol):
    """What makes counterfactuals."""

    def counterfactual(self, individuals: Individuals, level: Codes, *, draw: int) -> Features:
        """What individuals would look like at ``level [n]``.

        Args:
            individuals: Who.
            level: Their level of A; the own one is a null intervention.
            draw: Another draw is another generation, if the generator has randomness.
        """


@dataclass(frozen=True)
class ExactGenerator:
    """The world's own equations.

    Attributes:
        world: The world.
        noise: What becomes of the measurement noise.
    """

    world: World
    noise: Noise = "abducted"

    def counterfactual(self, individuals: Individuals, level: Codes, *, draw: int) -> Features:
        """See `Generator`."""
        shown = individuals if self.noise == "abducted" else self.world.redrawn(individuals, seed=draw)
        return self.world.features(shown, level)


class StructuralModel:
    """A structural causal model fitted to observed rows: A, Z_T and the features of the learning rows.

    Each feature is a linear function of Z_T for each level of A, plus a residual; that is the world's own
    form but for its noise, which the mixing also touches. What the graph says A does not reach is one
    function for all levels, and keeps its observed value.

    Args:
        world: Whose features; its equations are not looked at.
        learning: Rows to fit on.
        noise: What becomes of an individual's residual.
        graph: ``known``: root features are no descendants of A. ``unknown``: nobody told the model so, and it
            fits them for each level too; its errors then look like effects.
        shuffled: Seed by which levels are shuffled over rows first, which makes a null generator: one whose
            interventions mean nothing, with errors like those of the real one.
        seed: Of residuals that are drawn.

    Raises:
        AuditError: If a level has too few rows for the regression.
    """

    def __init__(
        self,
        world: World,
        learning: Individuals,
        *,
        noise: Noise = "abducted",
        graph: Literal["known", "unknown"] = "known",
        shuffled: int | None = None,
        seed: int = 0,
    ) -> None:
        self.noise, self.graph, self.seed, self.shuffled = noise, graph, seed, shuffled
        self.world = world
        own = self._levels(learning)
        seen = world.features(learning)
        needed = learning.root.shape[1] + 2
        for level in (0, 1):
            if (own == level).sum() < needed:
                raise AuditError(
                    f"Level a{level} has {int((own == level).sum())} learning rows; a structural model of "
                    f"{needed - 2} inputs needs {needed} or more. Draw more individuals."
                )
        levels_of_root = own if graph == "unknown" else np.zeros_like(own)
        self._root = LevelRegression(learning.root, seen.root, levels_of_root)
        self._mixed = LevelRegression(learning.root, seen.mixed, own)

    def counterfactual(self, individuals: Individuals, level: Codes, *, draw: int) -> Features:
        """See `Generator`; a null generator flips its own, shuffled levels where ``level`` is not the own."""
        own = self._levels(individuals)
        asked = level if self.shuffled is None else np.where(level == individuals.own, own, 1 - own)
        random = np.random.default_rng([self.seed, draw])
        seen = self.world.features(individuals)
        known = self.graph == "known"
        return Features(
            root=self._moved(
                self._root,
                individuals.root,
                seen.root,
                *((own * 0, own * 0) if known else (own, asked)),
                random,
            ),
            mixed=self._moved(self._mixed, individuals.root, seen.mixed, own, asked, random),
        )

    def _moved(
        self,
        model: LevelRegression,
        root: Floats,
        seen: Floats,
        own: Codes,
        asked: Codes,
        random: np.random.Generator,
    ) -> Floats:
        if self.noise == "redrawn":
            return model.mean(root, asked) + model.residuals(asked, random)
        # Abduction keeps the residual exactly; where nothing changes, not even rounding does.
        return np.where((asked == own)[:, None], seen, seen + model.mean(root, asked) - model.mean(root, own))

    def _levels(self, individuals: Individuals) -> Codes:
        if self.shuffled is None:
            return individuals.own
        shuffled: Codes = np.random.default_rng([self.shuffled, len(individuals)]).permutation(
            individuals.own
        )
        return shuffled


class LevelRegression:
    """One linear regression for each level.

    Args:
        inputs: ``[n, Q]``.
        outputs: ``[n, D]``.
        levels: ``[n]``.
    """

    def __init__(self, inputs: Floats, outputs: Floats, levels: Codes) -> None:
        self.width = outputs.shape[1]
        found = np.unique(levels)
        self.models = {k: LinearRegression().fit(inputs[levels == k], outputs[levels == k]) for k in found}
        self.left = {k: outputs[levels == k] - m.predict(inputs[levels == k]) for k, m in self.models.items()}

    def mean(self, inputs: Floats, levels: Codes) -> Floats:
        """``[n, D]`` predictions at each row's level."""
        predicted = np.empty((len(inputs), self.width))
        for level, model in self.models.items():
            rows = levels == level
            if rows.any():
                predicted[rows] = model.predict(inputs[rows])
        return predicted

    def residuals(self, levels: Codes, random: np.random.Generator) -> Floats:
        """``[n, D]`` residuals of learning rows, drawn whole rows at a time."""
        drawn = np.empty((len(levels), self.width))
        for level, left in self.left.items():
            rows = levels == level
            drawn[rows] = left[random.integers(0, len(left), int(rows.sum()))]
        return drawn
