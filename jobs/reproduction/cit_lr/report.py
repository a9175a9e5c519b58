"""The page and the JSON of the experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterray.evaluation.report import Cell, Report, Section, Table, Text, format_number
from counterray.evaluation.sections import provenance_section
from jobs.reproduction.bars import Measured, bars_section, cell
from jobs.reproduction.cit_lr.experiment import METHODS, SETTINGS, Experiment, Setting
from jobs.reproduction.cit_lr.tables import bars, by_strength, correlations, distances, seconds, share_text
from jobs.reproduction.measuring import plain

_NOTICE = "Numbers of synthetic tables: no patient is behind them."


@dataclass(frozen=True)
class Outcome:
    """All that was measured.

    Attributes:
        experiment: What was run.
        worlds: World to what each seed measured, see `measure_world`.
        calibration: Setting to its rates, see `measure_calibration`.
        facts: Code version, seeds and the like.
    """

    experiment: Experiment
    worlds: Mapping[str, Sequence[Measured]]
    calibration: Mapping[Setting, Measured]
    facts: Mapping[str, Cell] = field(default_factory=dict)

    def tables(self) -> dict[str, Any]:
        """The tables as plain values."""
        return {
            "seeds": list(self.experiment.seeds),
            "bars": [bar.as_json() for bar in bars(self.experiment, self.worlds, self.calibration)],
            "correlations": {
                name: {method: spread.as_json() for method, spread in row.items()}
                for name, row in correlations(self.experiment, self.worlds).items()
            },
            "reference": {name: dict(row) for name, row in self.experiment.reference.items()},
            "distances": plain(distances(self.experiment, self.worlds)),
            "by_strength": by_strength(self.experiment, self.worlds),
            "calibration": {
                name: {key: value for key, value in measured.items() if key != "request"}
                for name, measured in self.calibration.items()
            },
            "seconds": {part: spread.as_json() for part, spread in seconds(self.worlds).items()},
            "contradictions": self.contradictions(),
            "facts": dict(self.facts),
        }

    def contradictions(self) -> list[str]:
        """A sentence for each published claim that goes the other way here."""
        row = by_strength(self.experiment, self.worlds)[0]
        sentences = []
        for method in ("cit_lr_shipped", "dp_shipped", "eo_shipped"):
            rate = row["rejected"][method]
            if rate > 0.07:
                sentences.append(
                    f"{METHODS[method]} rejects {rate:.0%} of the classifiers that are invariant by "
                    "construction, at a nominal 5 %."
                )
        return sentences

    def report(self) -> Report:
        """The page."""
        report = Report(
            "Counterfactual invariance, repeated on worlds whose truth is known",
            f"{len(self.experiment.worlds)} worlds, {len(self.experiment.seeds)} seeds: the published tests, "
            "and the effects themselves.",
            _NOTICE,
            f"Made by counterray {self.facts.get('Code version', '')}.",
        )
        for section in (
            bars_section(
                bars(self.experiment, self.worlds, self.calibration),
                Text(self.contradictions(), tone="warning"),
            ),
            self._correlations(),
            self._strengths(),
            self._calibration(),
            self._seconds(),
            provenance_section(self.facts, bundles={}, config=self.experiment.model_dump(mode="json")),
            Section("Limits", [Text(_LIMITS)]),
        ):
            report.add(section)
        return report

    def _correlations(self) -> Section:
        found = correlations(self.experiment, self.worlds)
        rows: list[list[Cell]] = [
            [name.replace("_", "-"), *(cell(spread) for spread in row.values())]
            for name, row in found.items()
        ]
        before: list[list[Cell]] = [
            [name.replace("_", "-"), *(row.get(method) for method in METHODS)]
            for name, row in self.experiment.reference.items()
        ]
        apart: list[list[Cell]] = [
            [METHODS[method], *(_number(row.get(name)) for name in self.experiment.worlds)]
            for method, row in distances(self.experiment, self.worlds).items()
        ]
        columns = ["World", *METHODS.values()]
        return Section(
            "(a) Who orders classifiers by their true invariance?",
            [
                Table(
                    columns,
                    rows,
                    "Spearman correlation of -log10 p, or of the effect, with 1 - true ECA over the pool: "
                    "mean ± standard deviation over seeds.",
                ),
                Table(columns, before, "An earlier measurement with other draws, two seeds.", folded=True),
                Table(
                    ["Test", *(name.replace("_", "-") for name in self.experiment.worlds)],
                    apart,
                    "How far ours are from it, in standard errors of seed-to-seed spread.",
                    folded=True,
                ),
            ],
            "True ECA is simulated from the worlds' equations. 1 is a perfect order, 0 none.",
        )

    def _strengths(self) -> Section:
        found = by_strength(self.experiment, self.worlds)
        tests = list(found[0]["rejected"])
        rejections: list[list[Cell]] = [
            [
                format_number(row["strength"]),
                row["classifiers"],
                row["eca"],
                *(row["rejected"][test] for test in tests),
            ]
            for row in found
        ]
        verdicts: list[list[Cell]] = [
            [
                format_number(row["strength"]),
                row["eca"],
                row["eca_shipped"],
                *(
                    ", ".join(f"{count} {name}" for name, count in sorted(row["verdicts"][kind].items()))
                    for kind in ("exact", "learned")
                ),
            ]
            for row in found
        ]
        return Section(
            "(b) Rejections and verdicts by strength",
            [
                Table(
                    ["Strength", "Classifiers", "True ECA", *(METHODS[test] for test in tests)],
                    rejections,
                    "Share of tests with p at most 0.05, uncorrected. The first row is the type I error.",
                ),
                Table(
                    [
                        "Strength",
                        "True ECA",
                        "ECA as shipped",
                        "Verdicts, exact counterfactuals",
                        "Verdicts, learned counterfactuals",
                    ],
                    verdicts,
                    "Verdicts after correction over each pool. ECA as shipped compares with counterfactuals "
                    "whose matrices are drawn anew.",
                ),
            ],
        )

    def _calibration(self) -> Section:
        keys = ("rejected", "rejected_delta", "invariant", "depends")
        rows: list[list[Cell]] = []
        for setting, words in SETTINGS.items():
            measured = self.calibration[setting]
            count = measured["replicates"]
            shares = (measured[key] for key in keys)
            rows.append([words, count, *(s if s is None else share_text(s, count) for s in shares)])
        invariant = by_strength(self.experiment, self.worlds)[0]
        count = invariant["classifiers"]
        published: list[list[Cell]] = [
            [METHODS[method], count, share_text(rate, count)]
            for method, rate in invariant["rejected"].items()
        ]
        return Section(
            "(c) Calibration of the counterfactual audit",
            [
                Table(["", "Replicates", "p ≤ 0.05", "δ test", "invariant", "depends"], rows),
                Table(
                    ["Test", "Classifiers", "p ≤ 0.05"],
                    published,
                    "Beside it: all tests on the pools' classifiers of strength 0, which share worlds and "
                    "rows, so that the intervals are too narrow.",
                ),
            ],
            "Shares of replicates with exact binomial 95 % intervals; in each a world, a classifier and its "
            "audit are drawn anew, or on the phantom patients of one pool, a classifier and a generator. "
            "Where nothing moves at all every permutation ties, and the p-value is 1.",
        )

    def _seconds(self) -> Section:
        rows: list[list[Cell]] = [
            [part.replace("_", " "), cell(spread)] for part, spread in seconds(self.worlds).items()
        ]
        return Section(
            "(d) CPU time",
            [Table(["Part", "CPU-seconds a world"], rows)],
            "On one core: mean ± standard deviation over worlds and seeds.",
        )


def _number(value: float | None) -> Cell:
    return None if value is None or math.isnan(value) else value


_LIMITS = [
    "CIT-LR, demographic parity and equal opportunity see observed rows alone; the counterfactual audit sees "
    "counterfactuals, exact ones or those of a model fitted to the same learning rows. That is the point of "
    "it, and it is worth what the generator is worth.",
    "The learned generator is of the worlds' own linear form and is handed the root; an image's generator "
    "has neither advantage.",
    "The errors of a learned generator are shared by all individuals. Against null generators its p-values "
    "keep their level; against its own null interventions they do not, and a small p-value, and with it the "
    "verdict “depends”, may be the generator's doing.",
    "The paper lost the constants of its worlds: labels are redrawn here until both occur, and the strength "
    "of dependence is dialled by mixing features that the attribute touches with those that it does not.",
]
