"""The page and the JSON of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterray.evaluation.report import Cell, Report, Section, Table, Text, format_number
from counterray.evaluation.sections import provenance_section
from jobs.reproduction.bars import Measured, Spread, bars_section, cell
from jobs.reproduction.counterfactual_audit.experiment import GENERATORS, Experiment
from jobs.reproduction.counterfactual_audit.tables import (
    TESTS,
    Score,
    bars,
    mistakes,
    pair_scores,
    scores,
    total,
)

_NOTICE = "Numbers of simulated images: no patient is behind them."

_METHODS = {name: f"counterfactual_effect, {words}" for name, words in GENERATORS.items()} | TESTS

_COLUMNS = ["", "Classifiers", "Right of decided", "Missed", "False alarms", "Inconclusive", "Cannot tell"]


@dataclass(frozen=True)
class Outcome:
    """All that was measured.

    Attributes:
        experiment: What was run.
        seeds: What each seed measured, see `measure_pool`.
        bundles: Name of each training to its bundle's checksum.
        facts: Code version, seeds and the like.
    """

    experiment: Experiment
    seeds: Sequence[Measured]
    bundles: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Cell] = field(default_factory=dict)

    def tables(self) -> dict[str, Any]:
        """The tables as plain values."""
        return {
            "seeds": list(self.experiment.seeds),
            "bars": [bar.as_json() for bar in bars(self.seeds, self._alpha)],
            "scores": _plain(scores(self.seeds, self._alpha)),
            "by_kind": {kind: _plain(self._of(kind)) for kind in self.experiment.pool.kinds},
            "pairs": _plain(pair_scores(self.seeds)),
            "mistakes": {name: mistakes(self.seeds, name) for name in GENERATORS},
            "gates": {
                name: {gate: spread.as_json() for gate, spread in row.items()}
                for name, row in self._gates().items()
            },
            "seconds": {name: spread.as_json() for name, spread in self._seconds().items()},
            "contradictions": self.contradictions(),
            "facts": dict(self.facts),
        }

    def contradictions(self) -> list[str]:
        """A sentence for each published claim that goes the other way here."""
        found = {name: total(parts) for name, parts in scores(self.seeds, self._alpha).items()}
        test, best = found["cit_lr"], max(("dp", "eo"), key=lambda name: found[name].accuracy or 0.0)
        if test.accuracy is None or test.accuracy >= (found[best].accuracy or 0.0):
            return []
        return [
            f"{TESTS['cit_lr']} is right about {test.accuracy:.0%} of the classifiers, {TESTS[best]} about "
            f"{found[best].accuracy:.0%}: published the other way round."
        ]

    def report(self) -> Report:
        """The page."""
        pool = self.experiment.pool
        report = Report(
            f"Verdicts on classifiers whose dependence on {pool.attribute} is known",
            f"{len(self.seeds)} seeds of judges, generator, classifiers and individuals.",
            _NOTICE,
            f"Made by counterray {self.facts.get('Code version', '')}.",
        )
        for section in (
            bars_section(bars(self.seeds, self._alpha), Text(self.contradictions(), tone="warning")),
            self._verdicts(),
            self._mistakes(),
            self._gates_section(),
            Section(
                "(d) CPU time",
                [
                    Table(
                        ["Part", "CPU-seconds a seed"],
                        [[name.replace("_", " "), cell(spread)] for name, spread in self._seconds().items()],
                    )
                ],
                "On one core; trainings not counted.",
            ),
            provenance_section(
                self.facts, bundles=self.bundles, config=self.experiment.model_dump(mode="json")
            ),
            Section("Limits", [Text(_LIMITS)]),
        ):
            report.add(section)
        return report

    def _verdicts(self) -> Section:
        tables = [
            _table(scores(self.seeds, self._alpha), "Over all classifiers and all pairs of levels of each."),
            *(_table(self._of(kind), f"Of kind {kind}.", folded=True) for kind in self.experiment.pool.kinds),
            _table(pair_scores(self.seeds), "Each pair of levels for itself.", folded=True),
        ]
        return Section(
            "(a) Who is right about whom?",
            tables,
            "Truth: by the renderer's counterfactuals of other individuals, against the audit's margins. A "
            f"test that has no word for invariance is taken to say it where p is above {self._alpha:g}.",
        )

    def _mistakes(self) -> Section:
        tables = [
            Table(
                ["Seed", "Classifier", "Finding", "True size", "Verdict", "Pair", "|effect|", "truly"],
                [
                    [
                        row["seed"],
                        row["name"],
                        row["finding"].replace("_", " "),
                        row["size"],
                        row["verdict"],
                        row["pair"],
                        row["absolute"],
                        row["absolute_true"],
                    ]
                    for row in mistakes(self.seeds, name)
                ],
                f"Wrong verdicts with the counterfactuals of {GENERATORS[name]}.",
                folded=name == "exact",
            )
            for name in ("learned", "exact")
        ]
        return Section(
            "(b) Where it is wrong",
            tables,
            "True size is the largest true effect in margins: invariant is below 1. The pair is the one "
            "whose effect is furthest from the truth.",
        )

    def _gates_section(self) -> Section:
        found = self._gates()
        names = list(next(iter(found.values())))
        limits: list[Cell] = ["limit", *(format_number(self._limit(name)) for name in names)]
        rows: list[list[Cell]] = [
            [GENERATORS[generator], *(cell(row[name]) for name in names)] for generator, row in found.items()
        ]
        return Section(
            "(c) Gates",
            [Table(["Generator", *(name.replace("_", " ") for name in names)], [*rows, limits])],
            "By judges of other patients and another seed than the generator's: mean ± standard deviation.",
        )

    @property
    def _alpha(self) -> float:
        return self.experiment.audit.alpha

    def _of(self, kind: str) -> dict[str, list[Score]]:
        return scores(self.seeds, self._alpha, where=lambda row: row["kind"] == kind)

    def _limit(self, gate: str) -> float:
        return float(getattr(self.experiment.audit.gates, gate))

    def _gates(self) -> dict[str, dict[str, Spread]]:
        return {
            name: {
                gate["name"]: Spread.of(seed["gates"][name][k]["value"] for seed in self.seeds)
                for k, gate in enumerate(self.seeds[0]["gates"][name])
            }
            for name in GENERATORS
        }

    def _seconds(self) -> dict[str, Spread]:
        return {
            part: Spread.of(seed["seconds"][part] for seed in self.seeds) for part in self.seeds[0]["seconds"]
        }


def _table(found: Mapping[str, Sequence[Score]], caption: str, *, folded: bool = False) -> Table:
    rows: list[list[Cell]] = []
    for name, parts in found.items():
        every = total(parts)
        accuracy = cell(Spread.of(part.accuracy for part in parts))
        counts = (every.missed, every.alarms, every.inconclusive, every.cannot_tell)
        rows.append([_METHODS[name], every.count, accuracy, *counts])
    return Table(_COLUMNS, rows, f"{caption} Counts are over all seeds.", folded=folded)


def _plain(found: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    return {
        name: {**total(parts).as_json(), "seeds": [part.as_json() for part in parts]}
        for name, parts in found.items()
    }


_LIMITS = [
    "The phantom's scanners differ by a tone curve, blur, noise and vignette: a real scanner differs by "
    "more, and by things that no judge was trained to see.",
    "Margins are the audit's own; classifiers whose true size is near 1 are near the line that the "
    "verdict draws, where even exact counterfactuals of so many individuals are sometimes inconclusive.",
    "Shortcuts read the scanner as a network does that learned from unpaired images. One that reads what "
    "generated images do not show is missed, however open the gates are.",
    "What the shortcuts read, and that “depends” takes an effect as large as a margin, was settled after "
    "earlier runs had been seen; the experiment's settings hold what they showed.",
    "Rerendered classifiers look at the true record beside the image: with learned counterfactuals only "
    "their shortcut sees the generated image.",
]
