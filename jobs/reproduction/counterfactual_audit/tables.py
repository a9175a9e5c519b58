"""What was measured, as tables: who is right about whom, and the bars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.reproduction.bars import Bar, Measured, Spread
from jobs.reproduction.counterfactual_audit.experiment import DEGRADED, GENERATORS

RIGHT, UNTOLD, CLASSIFIERS = 0.9, 0.15, 40
"""The bars: share of right verdicts among those decided, at most so many "cannot tell", of so many
classifiers."""

TESTS = {
    "cit_lr": "CIT-LR, corrected",
    "orthogonal": "CIT-LR, orthogonalised",
    "dp": "DP, Welch",
    "eo": "EO, Welch",
}
"""Tests that see observed images alone."""

DECIDED = ("invariant", "depends")

Classified = Mapping[str, Any]
"""A classifier and all that was said of it, see `measure_pool`."""

Word = Callable[[Classified], str]
"""Classifier to the verdict on it."""


@dataclass(frozen=True)
class Score:
    """How right a method is about a pool.

    Attributes:
        count: Classifiers.
        right: Verdicts "invariant" or "depends" that are true.
        missed: Dependent classifiers that were called invariant.
        alarms: Invariant ones that were called dependent.
        inconclusive: Verdicts "inconclusive".
        cannot_tell: Verdicts "cannot tell".
        refused: Classifiers that the method could say nothing of.
    """

    count: int
    right: int
    missed: int
    alarms: int
    inconclusive: int
    cannot_tell: int
    refused: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Score:
        """Of true and given verdicts."""
        found = Counter(pairs)
        given = Counter(said for _, said in found.elements())
        return cls(
            count=found.total(),
            right=found["invariant", "invariant"] + found["depends", "depends"],
            missed=found["depends", "invariant"],
            alarms=found["invariant", "depends"],
            inconclusive=given["inconclusive"],
            cannot_tell=given["cannot_tell"],
            refused=given["refused"],
        )

    @property
    def decided(self) -> int:
        """Verdicts "invariant" or "depends"."""
        return self.right + self.missed + self.alarms

    @property
    def accuracy(self) -> float | None:
        """Share of right ones among the decided; ``None`` where nothing was."""
        return self.right / self.decided if self.decided else None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__, "decided": self.decided, "accuracy": self.accuracy}


def words(alpha: float) -> dict[str, Word]:
    """Name of each method to its verdict on a classifier.

    Args:
        alpha: Up to which p-value a test that has no word for invariance says "depends"; above it is taken
            to say "invariant", as its authors read it.
    """

    def audit(name: str) -> Word:
        return lambda row: str(row["audits"][name]["verdict"])

    def test(name: str) -> Word:
        def word(row: Classified) -> str:
            p_value = row["tests"][name]
            if p_value is None:
                return "refused"
            return "depends" if p_value <= alpha else "invariant"

        return word

    return {name: audit(name) for name in GENERATORS} | {name: test(name) for name in TESTS}


def scores(
    seeds: Sequence[Measured], alpha: float, *, where: Callable[[Classified], bool] = lambda row: True
) -> dict[str, list[Score]]:
    """Method to its score of each seed, over the classifiers for which ``where`` holds."""
    return {
        name: [
            Score.of((row["truth"]["verdict"], word(row)) for row in seed["classifiers"] if where(row))
            for seed in seeds
        ]
        for name, word in words(alpha).items()
    }


def pair_scores(seeds: Sequence[Measured]) -> dict[str, list[Score]]:
    """Generator to the score of each seed over classifiers and pairs of levels."""
    return {
        name: [
            Score.of(
                (truth["verdict"], row["audits"][name]["pairs"][pair]["verdict"])
                for row in seed["classifiers"]
                for pair, truth in row["truth"]["pairs"].items()
                if pair in row["audits"][name]["pairs"]
            )
            for seed in seeds
        ]
        for name in GENERATORS
    }


def total(parts: Sequence[Score]) -> Score:
    """Over all seeds."""
    return Score(**{name: sum(getattr(part, name) for part in parts) for name in Score.__annotations__})


def mistakes(seeds: Sequence[Measured], generator: str) -> list[dict[str, Any]]:
    """Every decided verdict of a generator that is wrong, with the pair whose effect is furthest off."""
    found = []
    for seed in seeds:
        for row in seed["classifiers"]:
            said, truth = row["audits"][generator], row["truth"]
            if said["verdict"] not in DECIDED or said["verdict"] == truth["verdict"]:
                continue
            pair = max(
                said["pairs"],
                key=lambda name: abs(said["pairs"][name]["absolute"] - truth["pairs"][name]["absolute"]),
            )
            found.append(
                {
                    "seed": seed["seed"],
                    **{name: row[name] for name in ("name", "finding", "size")},
                    "verdict": said["verdict"],
                    "pair": pair,
                    "absolute": said["pairs"][pair]["absolute"],
                    "absolute_true": truth["pairs"][pair]["absolute"],
                }
            )
    return found


def bars(seeds: Sequence[Measured], alpha: float) -> list[Bar]:
    """Every bar."""
    found = scores(seeds, alpha)
    learned = found["learned"]
    every = total(learned)
    counts = f"{every.right} of {every.decided} decided, {every.count} in all"
    return [
        Bar(
            "Classifiers of known truth",
            Spread(tuple(float(part.count) for part in learned)),
            CLASSIFIERS,
            "higher",
        ),
        Bar(
            "Right verdicts of those decided, learned generator",
            Spread.of(part.accuracy for part in learned),
            RIGHT,
            "higher",
            counts,
        ),
        Bar(
            "“Cannot tell” or inconclusive, learned generator",
            Spread(tuple(1 - part.decided / part.count for part in learned)),
            UNTOLD,
            "lower",
            f"{every.cannot_tell} cannot tell, {every.inconclusive} inconclusive",
        ),
        *(
            Bar(
                f"“Cannot tell”, {GENERATORS[name]}",
                Spread(tuple(part.cannot_tell / part.count for part in found[name])),
                1.0,
                "higher",
            )
            for name in DEGRADED
        ),
    ]
