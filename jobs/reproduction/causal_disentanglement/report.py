"""The page and the JSON of an experiment's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterray.data.dataset import DatasetManifest
from counterray.evaluation.downstream import MEASURES, DownstreamUtility
from counterray.evaluation.report import Block, Cell, Report, Section, Table, Text
from counterray.evaluation.sections import dataset_section, limits_section, provenance_section
from counterray.evaluation.wording import SYNTHETIC_NOTICE, words
from jobs.reproduction.bars import Bar, Measured, Spread, bars_section, cell
from jobs.reproduction.causal_disentanglement.experiment import Experiment
from jobs.reproduction.causal_disentanglement.pictures import pictures_section
from jobs.reproduction.causal_disentanglement.tables import (
    AUROC,
    FRECHET,
    ArmRow,
    Steps,
    ablation,
    counterfactual_bars,
    metric,
    never_arrived,
    rare_bars,
    steps_beside,
    utility_scores,
)

_MISSING = "The arm with everything was not among the arms that were run."


@dataclass(frozen=True)
class Outcome:
    """All that was measured.

    Attributes:
        experiment: What was run.
        manifest: Of the data.
        scores: Arm to what each seed measured, see `score_arm`.
        rare: What each seed measured of rare findings, see `rare_edits`; empty without the full arm.
        utility: What each seed measured of downstream use, see `measure_utility`; empty without it.
        bundles: Role and seed to checksum.
        facts: Code version, seeds and the like.
    """

    experiment: Experiment
    manifest: DatasetManifest
    scores: Mapping[str, Sequence[Measured]]
    rare: Sequence[Measured] = ()
    utility: Sequence[Measured] = ()
    bundles: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def full(self) -> Sequence[Measured]:
        """What each seed measured of the full arm; empty where it was not run."""
        return self.scores.get(self.experiment.full, ())

    def bars(self) -> list[Bar]:
        """Every bar that was measured."""
        return [
            *(counterfactual_bars(self.full) if self.full else ()),
            *(rare_bars(self.rare) if self.rare else ()),
        ]

    def tables(self) -> dict[str, Any]:
        """The tables as plain values."""
        arms = {name: self.experiment.ablation[name] for name in self.scores}
        rows = ablation(arms, self.scores)
        names = self.manifest.finding_names
        return {
            "seeds": list(self.experiment.seeds),
            "bars": [bar.as_json() for bar in self.bars()],
            "ablation": [
                {
                    "arm": row.name,
                    "label": row.arm.label,
                    "published": dict(row.arm.published),
                    **{column: spread.as_json() for column, spread in row.numbers.items()},
                }
                for row in rows
            ],
            "contradictions": list(self._steps(rows).against),
            "counterfactuals": {
                finding: {key: metric(self.full, f"{key}[{finding}]").as_json() for key in _FINDINGS}
                for finding in (names if self.full else ())
            },
            "rare": list(self.rare),
            "downstream": list(self.utility),
            "bundles": dict(self.bundles),
            "facts": dict(self.facts),
        }

    def report(self) -> Report:
        """The page."""
        report = Report(
            "Causal disentanglement, repeated on the phantom",
            f"The paper's ablation, its rare findings and its downstream comparison, where the truth is "
            f"known: {len(self.experiment.seeds)} seeds.",
            SYNTHETIC_NOTICE,
            f"Made by counterray {self.facts.get('Code version', '')}.",
        )
        for section in (
            bars_section(self.bars(), Text([_MISSING] if not self.full else [])),
            self._ablation(),
            self._counterfactuals(),
            pictures_section(self.scores, {n: arm.label for n, arm in self.experiment.ablation.items()}),
            rare_section(self.rare),
            utility_section(self.utility),
            dataset_section(self.manifest),
            provenance_section(
                self.facts, bundles=self.bundles, config=self.experiment.model_dump(mode="json")
            ),
            limits_section(
                "Each seed has judges of its own, so means over seeds also spread with the judges; arms are "
                "compared within a seed.",
                "The paper's numbers beside ours are of real radiographs, other judges and other sizes: only "
                "the order of the rows can be compared.",
            ),
        ):
            report.add(section)
        return report

    def _steps(self, rows: Sequence[ArmRow]) -> Steps:
        return steps_beside(rows, fewest=self.experiment.scoring.minimum_positives)

    def _ablation(self) -> Section:
        rows = ablation({name: self.experiment.ablation[name] for name in self.scores}, self.scores)
        columns = list(rows[0].numbers)
        table = Table(
            [
                "Arm",
                "Noise optimised",
                *(_COLUMNS.get(c, words(c)) for c in columns),
                "Paper: FID",
                "Paper: AUROC",
            ],
            [
                [
                    row.arm.label,
                    f"{row.optimised[0]} of {row.optimised[1]}" if row.arm.optimise else "none",
                    *(cell(row.numbers[c]) for c in columns),
                    row.arm.published.get(FRECHET),
                    row.arm.published.get(AUROC),
                ]
                for row in rows
            ],
            "This patient with what another patient's prompt says: mean ± standard deviation over seeds. "
            "Areas are deviations from the exact counterfactual's (medians); errors are shares of the grey "
            "range.",
        )
        steps = self._steps(rows)
        same = steps.compared - len(steps.against)
        said = [f"{same} of {steps.compared} steps go the way that they go in the paper."]
        return Section(
            "(a) Ablation",
            [
                table,
                Text(said if steps.compared else []),
                Text(list(steps.against), tone="warning"),
                Text(list(steps.left_out)),
            ],
            "The paper's table 4.",
        )

    def _counterfactuals(self) -> Section:
        rows: list[list[Cell]] = [
            [
                words(name),
                self.full[0]["metrics"].get(f"effectiveness_auroc[{name}]", {}).get("note", ""),
                *(cell(metric(self.full, f"{key}[{name}]")) for key in _FINDINGS),
            ]
            for name in (self.manifest.finding_names if self.full else ())
        ]
        off_target: list[list[Cell]] = [
            [label, cell(metric(self.full, f"off_target_change{subset}"))]
            for label, subset in (
                ("Counterfactuals", ""),
                ("Exact counterfactuals", "[exact counterfactual]"),
            )
            if self.full
        ]
        return Section(
            "(b) Counterfactuals against the truth",
            [
                Table(
                    ["Finding", "Images asked for", *_FINDINGS.values()],
                    rows,
                    "The full arm, finding by finding: mean ± standard deviation over seeds. The numbers of "
                    "images are the first seed's; a ratio that rests on a few is next to nothing.",
                ),
                Table(["", "Change of findings not asked for"], off_target),
            ],
            "A ratio of 1 is as effective as a real image.",
        )


_COLUMNS = {FRECHET: "Fréchet distance ↓", AUROC: "AUROC ↑"}
_FINDINGS = {
    "effectiveness_ratio": "Effectiveness ratio",
    "effectiveness_auroc": "AUROC on counterfactuals",
    "real_auroc": "AUROC on real images",
    "off_target_change": "Off-target change",
}


def rare_section(measured: Sequence[Measured]) -> Section:
    """Table (c)."""
    blocks: list[Block] = []
    for finding in measured[0]["order"] if measured else ():
        seeds = [seed["findings"][finding] for seed in measured]
        counts = f"{seeds[0]['samples']} test studies without it, {seeds[0]['real']['positives']} real images"
        rows: list[list[Cell]] = [
            [
                label,
                *(
                    cell(Spread.of(seed[way][key] for seed in seeds))
                    for key in ("auroc", "ratio", "diversity", "deviation", "distance", "seconds")
                ),
            ]
            for label, way in (("As drawn", "without"), ("Noise optimised", "with"))
        ]
        real = Spread.of(seed["real"]["auroc"] for seed in seeds)
        rows.append(["Real images", cell(real), 1.0, 1.0, 1.0, None, None])
        ranges = [
            f"{each['low']:.2f} to {each['high']:.2f}" for each in (s["with"]["interval"] for s in seeds)
        ]
        columns = ["AUROC", "Ratio to real", "Diversity of real", "Deviation of real", "Distance to target"]
        caption = (
            f"{words(finding)}: asked of {counts} that show it, of patients that the judge has not seen. "
            f"95 % intervals of the optimised ratio over patients, seed by seed: {'; '.join(ranges)}."
        )
        blocks.append(Table(["Images", *columns, "Seconds a sample"], rows, caption))
    if measured:
        blocks.append(_printed_table([seed["printed"] for seed in measured]))
        blocks.append(Text([said] if (said := never_arrived(measured)) else []))
    return Section(
        "(c) Rare findings",
        blocks,
        "Effectiveness against the same model's drawing of the same studies with their own prompts; "
        "diversity by mean distance between two images' features.",
    )


def _printed_table(printed: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = [
        [
            label,
            cell(Spread.of(seed[key]["seconds"] for seed in printed)),
            cell(Spread.of(seed[key]["distance"] for seed in printed)),
        ]
        for label, key in (("Ours", "ours"), ("Algorithm 2 with its rule of stopping", "as_printed"))
    ]
    rows += [
        [
            f"Algorithm 2, {_range(int(entry['iterations']) for entry in entries)} iterations",
            cell(Spread.of(entry["seconds"] for entry in entries)),
            cell(Spread.of(entry["distance"] for entry in entries)),
        ]
        # A seed that has arrived goes no further; rows end with the first to do so.
        for entries in zip(*(seed["trace"] for seed in printed), strict=False)
    ]
    start = Spread.of(seed["start"] for seed in printed).text
    caption = (
        f"Noise optimisation against Algorithm 2 as printed, {words(printed[0]['finding'])}, "
        f"{printed[0]['samples']} samples in one batch with the same noise, targets and step; distances of "
        f"the images drawn in the end, {start} before."
    )
    return Table(["Optimiser", "Seconds a sample", "Distance to target"], rows, caption)


def _range(numbers: Iterable[int]) -> str:
    first, *_, last = sorted([*numbers] * 2)
    return str(first) if first == last else f"{first} to {last}"


def utility_section(measured: Sequence[Measured]) -> Section:
    """Table (d)."""
    if not measured:
        return Section("(d) Downstream use", [])
    scores, findings = utility_scores(measured)
    assert len(next(iter(scores.values()))[0, 0]) == len(MEASURES)
    table = DownstreamUtility(
        [], {"real": scores["real"], "with synthetic": scores["with synthetic"]}, findings
    )
    first = measured[0]
    rare = ", ".join(name.replace("_", " ") for name in first["rare"])
    positives = ", ".join(f"{n.replace('_', ' ')} {first['positives'][n]}" for n in findings)
    return Section(
        "(d) Downstream use",
        [
            table.table(),
            Text([f"Positive test images, of {first['test']}: {positives}. A rate rests on these alone."]),
            _gains_table(measured, findings),
        ],
        f"The paper's table 5: ResNet-18 on {first['real']} real training images, and with "
        f"{first['synthetic']} synthetic ones of {rare}. Another seed is another generator and network.",
    )


def _gains_table(measured: Sequence[Measured], findings: Sequence[str]) -> Table:
    """What synthetic images add in each seed, with its interval over test patients."""
    return Table(
        ["Finding", "Seed", *(f"Gain in {_GAINS[name]}" for name in _GAINS)],
        [
            [words(finding), str(seed["seed"]), *(_gain(seed["metrics"], name, finding) for name in _GAINS)]
            for finding in findings
            for seed in measured
        ],
        "What synthetic images add, with 95 % intervals over test patients; those that span 0 show nothing.",
    )


_GAINS = {"auroc": "AUROC", "sensitivity": "sensitivity", "ppv": "PPV", "f1": "F1"}


def _gain(metrics: Mapping[str, Any], name: str, finding: str) -> Cell:
    gain = metrics[f"downstream_{name}_gain[{finding}]"]
    if gain["value"] is None:
        return None
    if gain["low"] is None:
        return f"{gain['value']:+.3f}"
    return f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
