"""The six data-generating processes of the paper, as shipped and corrected, with exact counterfactuals.

An attribute A decides how a root ``Z_T``, of which the label is a function, is mixed into what a classifier
sees: ``A ~ Bernoulli(1/2)``, ``Z_T ~ N(0, I)``, and for t = T-1 … 1
``Z_t = A M_t Z_{t+1} + (1 - A) N_t Z_{t+1} + ξ_t``; then ``X = M_X Z_1 + r + ε``. Labels do not depend on A.

Letters: n = individuals, k = size of each Z and of X.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.special import expit

from counterray.audits.errors import AuditError, Codes
from counterray.config import Config
from counterray.evaluation.intervals import Floats

WorldName = Literal["linear", "quadratic", "exponential", "interactive", "log_scale", "sin", "relu"]
Random = np.random.Generator

WORLDS: tuple[WorldName, ...] = ("linear", "quadratic", "exponential", "interactive", "log_scale", "sin")
"""The paper's six; ``relu`` is in its code alone."""

LEVELS = ("a0", "a1")
"""Names of the two levels of A."""

_BALANCE = 0.4
"""Least share of either label in a corrected world: with the paper's constants lost, the shipped ones leave
some draws without a positive."""


class WorldConfig(Config):
    """One world."""

    name: WorldName
    """Which label function."""
    reading: Literal["corrected", "as_shipped"] = "corrected"
    """``corrected``: ``N_t`` is drawn as ``M_t`` is, counterfactuals come from the same equations, and the
    test is handed ``Z_T``. ``as_shipped``: ``N_t`` is constant, counterfactuals come from matrices drawn
    anew, and the test is handed ``Z_{T-1}``, a descendant of A."""
    steps: int = Field(default=3, ge=2)
    """T."""
    size: int = Field(default=32, ge=2)
    """k."""
    noise: float = Field(default=0.01, ge=0)
    """Standard deviation σ of ξ and ε; of the root's and of X's units."""
    seed: int = Field(default=0, ge=0)
    """Of the world's matrices, and of its label's weights."""


@dataclass(frozen=True)
class _Label:
    features: Callable[[Floats], Floats]
    weights: tuple[float, float]
    bias: tuple[float, float]


def _products(root: Floats) -> Floats:
    """``Z_i Z_j`` for all i ≠ j, ``[n, k (k - 1)]``."""
    pairs = root[:, :, None] * root[:, None, :]
    products: Floats = pairs[:, ~np.eye(root.shape[1], dtype=bool)]
    return products


@dataclass(frozen=True)
class _Logit:
    """``w · features(Z_T) + b``, or ``log(max(w · features, 1e-4)) + b``."""

    features: Callable[[Floats], Floats]
    weights: Floats
    bias: float
    logarithm: bool

    def __call__(self, root: Floats) -> Floats:
        """``[n]``."""
        score: Floats = self.features(root) @ self.weights
        return (np.log(np.maximum(score, 1e-4)) if self.logarithm else score) + self.bias


_LABELS: Mapping[WorldName, _Label] = {
    "linear": _Label(lambda z: z, (-1, 1), (-1.5, 1)),
    "quadratic": _Label(np.square, (-4, 4), (20, 1)),
    "exponential": _Label(np.exp, (-1, 1), (10, 1)),
    "interactive": _Label(_products, (-1, 1), (0, 1)),
    "log_scale": _Label(lambda z: z, (-1, 1), (5, 1)),
    "sin": _Label(np.sin, (-1, 1), (0, 1)),
    "relu": _Label(lambda z: np.maximum(z, 0), (-1, 1), (-1, 1)),
}
"""Features of the root, range of the uniform weights, mean and standard deviation of the bias."""


@dataclass(frozen=True, kw_only=True)
class Individuals:
    """The noise of n individuals: all that a counterfactual keeps.

    Attributes:
        own: ``[n]`` level of A.
        root: ``[n, k]`` ``Z_T``.
        steps: ``[T - 1, n, k]`` ``ξ_t``, of ``Z_{T-1}`` first.
        measurement: ``[2, n, k]`` ε of the root's features and of X.
    """

    own: Codes
    root: Floats
    steps: Floats
    measurement: Floats

    def __len__(self) -> int:
        """How many they are."""
        return len(self.own)

    def select(self, rows: slice) -> Individuals:
        """Some of them."""
        return Individuals(
            own=self.own[rows],
            root=self.root[rows],
            steps=self.steps[:, rows],
            measurement=self.measurement[:, rows],
        )


@dataclass(frozen=True, kw_only=True)
class Features:
    """What can be seen of n individuals.

    Attributes:
        root: ``[n, k]`` ``M_X Z_T + r + ε'``: features that A does not touch.
        mixed: ``[n, k]`` ``X = M_X Z_1 + r + ε``: features that it does.
    """

    root: Floats
    mixed: Floats


class World:
    """One world with its matrices drawn.

    Args:
        config: Which one.

    Raises:
        AuditError: If the labels of a world as shipped are all the same.
    """

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        random = np.random.default_rng([config.seed, 0])
        k = config.size
        shipped = config.reading == "as_shipped"
        self.mixing = [
            (np.full((k, k), 1 / k) if shipped else _rows(random, k), _rows(random, k))
            for _ in range(config.steps - 1)
        ]
        self.measure, self.offset = random.uniform(-1, 1, (k, k)), random.uniform(-1, 1, k)
        reference = self.individuals(4000, seed=2**31)
        seen = self.features(reference)
        self.centre = Features(root=seen.root.mean(axis=0), mixed=seen.mixed.mean(axis=0))
        self.scale = Features(root=seen.root.std(axis=0), mixed=seen.mixed.std(axis=0))
        self._label = self._drawn_label(random, reference)

    def individuals(self, count: int, *, seed: int) -> Individuals:
        """Draws ``count`` individuals of this world."""
        config, random = self.config, np.random.default_rng([self.config.seed, 1, seed])
        shape = (count, config.size)
        return Individuals(
            own=random.integers(0, 2, count),
            root=random.standard_normal(shape),
            steps=random.normal(0, config.noise, (config.steps - 1, *shape)),
            measurement=random.normal(0, config.noise, (2, *shape)),
        )

    def labels(self, individuals: Individuals) -> Codes:
        """``1[sigmoid(logit) >= 1/2]``, ``[n]``; a function of the root alone."""
        labels: Codes = (expit(self._label(individuals.root)) >= 0.5).astype(np.int64)
        return labels

    def latents(self, individuals: Individuals, level: Codes | None = None) -> list[Floats]:
        """``[Z_1 … Z_T]``, each ``[n, k]``, at ``level [n]``, or as observed."""
        a = (individuals.own if level is None else level)[:, None]
        found = [individuals.root]
        for (zero, one), noise in zip(self.mixing, individuals.steps, strict=True):
            found.append(a * (found[-1] @ one.T) + (1 - a) * (found[-1] @ zero.T) + noise)
        return found[::-1]

    def features(self, individuals: Individuals, level: Codes | None = None) -> Features:
        """What is seen at ``level [n]``, or as observed: the exact counterfactual, noise and all."""
        latents = self.latents(individuals, level)
        return Features(
            root=latents[-1] @ self.measure.T + self.offset + individuals.measurement[0],
            mixed=latents[0] @ self.measure.T + self.offset + individuals.measurement[1],
        )

    def shipped_counterfactual(self, individuals: Individuals, *, seed: int) -> Features:
        """What the published code calls a counterfactual: A flipped, all mixing matrices drawn anew.

        They come from N(0, 1) without normalisation, so features are hundreds of times too large.
        """
        other = copy(self)
        random, k = np.random.default_rng([self.config.seed, 2, seed]), self.config.size
        other.mixing = [(random.standard_normal((k, k)), random.standard_normal((k, k))) for _ in self.mixing]
        return other.features(individuals, 1 - individuals.own)

    def representation(self, individuals: Individuals) -> Floats:
        """Z that is handed to CIT-LR, ``[n, k]``: ``Z_T``; as shipped, index 1 of the list of latents."""
        return self.latents(individuals)[1 if self.config.reading == "as_shipped" else -1]

    def view(self, features: Features, strength: float) -> Floats:
        """What a classifier of dialled dependence on A sees, ``[n, k]``.

        ``(1 - s) root + s mixed``, both standardised: at s = 0 nothing that A touches, at s = 1 the world's
        X.
        """
        root = (features.root - self.centre.root) / self.scale.root
        mixed = (features.mixed - self.centre.mixed) / self.scale.mixed
        return (1 - strength) * root + strength * mixed

    def redrawn(self, individuals: Individuals, *, seed: int) -> Individuals:
        """The same individuals with another measurement noise ε: what a generator with randomness shows."""
        noise = np.random.default_rng([self.config.seed, 3, seed]).normal(
            0, self.config.noise, individuals.measurement.shape
        )
        return replace(individuals, measurement=noise)

    def _drawn_label(self, random: Random, reference: Individuals) -> Callable[[Floats], Floats]:
        shape, name = _LABELS[self.config.name], self.config.name
        width = int(shape.features(reference.root[:1]).shape[1])
        for _ in range(1000):
            weights = random.uniform(*shape.weights, width)
            bias = random.normal(*shape.bias)
            logit = _Logit(shape.features, weights, bias, logarithm=name == "log_scale")
            rate = float((logit(reference.root) >= 0).mean())
            if self.config.reading == "as_shipped" and 0 < rate < 1:
                return logit
            if _BALANCE <= rate <= 1 - _BALANCE:
                return logit
            if self.config.reading == "as_shipped":
                break
        raise AuditError(
            f"World {name!r} with seed = {self.config.seed} has the same label for everybody; choose another "
            "seed, or reading = 'corrected', which draws until both labels occur."
        )


def _rows(random: Random, size: int) -> Floats:
    """A matrix of U(-10, 10) whose rows have an L1 norm of 1."""
    drawn = random.uniform(-10, 10, (size, size))
    matrix: Floats = drawn / np.abs(drawn).sum(axis=1, keepdims=True)
    return matrix
