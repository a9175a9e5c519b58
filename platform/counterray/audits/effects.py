"""Individual effects of interventions and their summaries, for all targets and pairs of levels at once.

Letters: T = targets, Q = pairs of levels, N = individuals, R = null interventions, P = patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from counterray.audits.clustered import patient_weights, percentiles, resampled_medians, resampled_ratios
from counterray.audits.equivalence import rates_among
from counterray.audits.errors import Codes
from counterray.audits.scores import CounterfactualScores
from counterray.audits.settings import MarginConfig
from counterray.evaluation.intervals import Floats

Truths = NDArray[np.bool_]


@dataclass(frozen=True)
class Summary:
    """A number of every target and pair, with the ends of its 95 % interval; each ``[T, Q]``."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Effects:
    """What changing the attribute does to each individual.

    Attributes:
        pairs: The Q pairs of levels ``(a, a')`` by position, a before a'.
        effect: ``[T, Q, N]``, ``τ_i(a → a') = s(x_i^(a')) - s(x_i^(a))``; both images are generated.
        placebo: ``[T, N, R]``, the same of null interventions: the score after one, less that at the
            individual's own level.
        up: ``[T, Q, N]`` decisions that turn positive from a to a'.
        down: ``[T, Q, N]`` decisions that turn negative.
        placebo_flip: ``[T, N]`` share of the R null interventions that change the decision.
        direction: ``[Q, N]``, 1 for individuals observed at a, -1 at a', 0 at neither.
    """

    pairs: tuple[tuple[int, int], ...]
    effect: Floats
    placebo: Floats
    up: Truths
    down: Truths
    placebo_flip: Floats
    direction: Floats

    @classmethod
    def of(cls, scores: CounterfactualScores) -> Effects:
        """Of checked scores."""
        pairs = tuple(combinations(range(len(scores.levels)), 2))
        first, second = (np.moveaxis(scores.intervened[..., [p[k] for p in pairs]], -1, 1) for k in (0, 1))
        own = np.take_along_axis(scores.intervened, scores.own[None, :, None], axis=2)  # [T, N, 1]
        cut = np.array([target.threshold for target in scores.targets])[:, None, None]
        called, called_later = first >= cut, second >= cut
        return cls(
            pairs=pairs,
            effect=second - first,
            placebo=scores.placebo - own,
            up=~called & called_later,
            down=called & ~called_later,
            placebo_flip=((scores.placebo >= cut) != (own >= cut)).mean(axis=-1),
            direction=np.stack([(scores.own == a).astype(np.float64) - (scores.own == b) for a, b in pairs]),
        )

    @property
    def concerned(self) -> Truths:
        """``[Q, N]`` individuals observed at one of the pair's levels."""
        concerned: Truths = self.direction != 0
        return concerned

    @property
    def flip(self) -> Floats:
        """``[T, Q, N]``, 1 where the decision changes."""
        return (self.up | self.down).astype(np.float64)

    @property
    def excess(self) -> Floats:
        """``[T, Q, N]``, ``|τ_i|`` less the mean of ``|τ_i|`` over null interventions."""
        return np.asarray(np.abs(self.effect) - np.abs(self.placebo).mean(axis=-1)[:, None])

    @property
    def excess_square(self) -> Floats:
        """``[T, Q, N]``, ``τ_i²`` less the mean over null interventions.

        Its mean is on the scale of δ = E[Var(f(A, Z) | Z)] of Theorem 4.2: ``τ² π (1 - π)`` for binary A.
        """
        return np.asarray(self.effect**2 - (self.placebo**2).mean(axis=-1)[:, None])

    @property
    def excess_flip(self) -> Floats:
        """``[T, Q, N]``, flips less the share of null interventions that flip."""
        return self.flip - self.placebo_flip[:, None]

    def size(self, margins: MarginConfig) -> Floats:
        """``[T, Q]``, the largest of the estimated effects in units of its margin, see `MarginConfig.size`.

        Where noise of the generator is independent, ``E|d|`` is at most ``E|τ|`` and at most
        ``√(E τ² - E τ_placebo²)``; the smaller one stands for it. ``E|τ| - E|τ_placebo|`` would be too small:
        noise adds in squares.
        """
        absolute = np.abs(self.effect).mean(axis=-1)
        without_noise = np.sqrt(np.maximum(self.excess_square.mean(axis=-1), 0.0))
        return margins.size(
            mean=self.effect.mean(axis=-1),
            absolute=np.minimum(absolute, without_noise),
            flip_rate=self.excess_flip.mean(axis=-1),
        )

    def changes(self) -> Floats:
        """``[T, Q, N, R + 1]`` changes for `role_permutation`, the real intervention's first.

        Each is a change away from the own level, with the sign of the pair's direction; 0 where not
        `concerned`. Only individuals observed at one of the two levels count: for them both images of the
        real pair are, like a null intervention, one generation away from the individual's own level. For
        others two generations would be compared with one.
        """
        null = self.placebo[:, None] * self.direction[None, :, :, None]
        return np.concatenate([self.effect[..., None] * np.abs(self.direction)[..., None], null], axis=-1)


def summaries(
    effects: Effects, scores: CounterfactualScores, patients: Codes, *, resamples: int, seed: int
) -> Mapping[str, Summary]:
    """Effect sizes with patient-bootstrap intervals; those of rates are exact, see `rates_among`.

    Returns:
        ``mean``, ``median``, ``absolute``, ``mean_square``, ``excess``, ``excess_square``, ``placebo``,
        ``flip``, ``excess_flip``, ``up``, ``down``, and the errors that flips cause:
        ``missed_at_second`` (disease that is called at a and missed at a'), ``missed_at_first``,
        ``alarm_at_second`` (a healthy individual called at a' and not at a), ``alarm_at_first``. Each error
        is a share of those with, or without, the disease; NaN without any. ``<name>@<level>`` is ``flip``,
        ``up``, ``down`` or an error among the individuals observed at that level.
    """
    weights = patient_weights(int(patients.max()) + 1, resamples=resamples, seed=seed)
    ones = np.ones((1, 1, len(scores)))
    plain = {
        "mean": effects.effect,
        "absolute": np.abs(effects.effect),
        "mean_square": effects.effect**2,
        "excess": effects.excess,
        "excess_square": effects.excess_square,
        "placebo": np.broadcast_to(np.abs(effects.placebo).mean(axis=-1)[:, None], effects.effect.shape),
        "excess_flip": effects.excess_flip,
    }
    found = {name: _ratio(values, ones, weights, patients) for name, values in plain.items()}
    found["median"] = Summary(
        lower_median(effects.effect), *percentiles(resampled_medians(weights, effects.effect, patients))
    )
    anyone = np.ones(len(scores), dtype=np.bool_)
    groups = {"": anyone} | {f"@{label}": scores.own == k for k, label in enumerate(scores.levels)}
    for suffix, here in groups.items():
        for name, (changed, among) in _rates(effects, scores).items():
            found[f"{name}{suffix}"] = Summary(*rates_among(changed, among & here, patients))
    return found


def lower_median(values: Floats) -> Floats:
    """The middle value over the last axis, the lower of two: a value that was seen."""
    middle = (values.shape[-1] - 1) // 2
    part: Floats = np.partition(values, middle, axis=-1)[..., middle]
    return part


def _rates(effects: Effects, scores: CounterfactualScores) -> dict[str, tuple[Truths, Truths]]:
    """Name to which decisions change ``[T, Q, N]``, and among whom they are counted ``[T, N]``."""
    ill, well = scores.labels == 1, scores.labels == 0
    everyone = np.ones_like(ill)
    return {
        "flip": (effects.up | effects.down, everyone),
        "up": (effects.up, everyone),
        "down": (effects.down, everyone),
        "missed_at_second": (effects.down, ill),
        "missed_at_first": (effects.up, ill),
        "alarm_at_second": (effects.up, well),
        "alarm_at_first": (effects.down, well),
    }


def _ratio(numerator: Floats, denominator: Floats, weights: Floats, patients: Codes) -> Summary:
    with np.errstate(invalid="ignore"):
        value = numerator.sum(axis=-1) / denominator.sum(axis=-1)
    draws = resampled_ratios(weights, numerator, denominator, patients)
    return Summary(value, *percentiles(draws))
