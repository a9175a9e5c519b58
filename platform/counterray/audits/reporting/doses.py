"""Continuous attributes in the report, such as age: curves, slopes, and a verdict over the range of doses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from counterray.audits.dose_response import DoseAudit, DoseFinding, DosePair
from counterray.audits.findings import Estimate
from counterray.audits.reporting.wording import VERDICTS, spread, words
from counterray.audits.verdicts import gate_sentence
from counterray.evaluation.charts import Dots
from counterray.evaluation.report import Block, Cell, Curves, DotPanel, Section, Table

CHARTED = 12
"""Targets whose curves are drawn; those with the largest change. The tables and the JSON have all."""


@dataclass(frozen=True, kw_only=True)
class DoseResults:
    """A dose-response audit and whom it was made on.

    Attributes:
        audit: What was found.
        individuals: Images.
        patients: Different ones among their patients.
    """

    audit: DoseAudit
    individuals: int
    patients: int

    @property
    def attribute(self) -> str:
        """Its name."""
        return self.audit.attribute

    def sentence(self, finding: DoseFinding) -> str:
        """The verdict in plain words, with the numbers that it rests on."""
        audit = self.audit
        if finding.verdict == "cannot_tell":
            closed = [gate for gate in audit.gates if gate.state == "closed"]
            return f"Cannot tell. {gate_sentence(closed)}"
        mean, flips = finding.widest.mean, finding.most_flips
        return (
            f"From {_span(finding.widest)} {audit.unit}, where it moves most, the score changes by "
            f"{mean.value:+.3f} (95 % interval {mean.low:+.3f} to {mean.high:+.3f}) on average; from "
            f"{_span(flips)} {audit.unit}, where most do, {flips.flips.value:.1%} of decisions change, in "
            f"{self.individuals} images of {self.patients} patients. Dependence: p = "
            f"{finding.p_corrected:.2g} after correction; equivalence within the margins between all doses: "
            f"p = {finding.p_equivalence:.2g}."
        ).replace("-", "−")

    def as_json(self) -> dict[str, Any]:
        """Plain values, ``None`` for what has no number."""
        audit = self.audit
        return {
            "attribute": audit.attribute,
            "unit": audit.unit,
            "doses": list(audit.doses),
            "individuals": self.individuals,
            "patients": self.patients,
            "findings": [
                {
                    "classifier": finding.target.classifier,
                    "finding": finding.target.finding,
                    "threshold": finding.target.threshold,
                    "verdict": finding.verdict,
                    "sentence": self.sentence(finding),
                    "curve": [point.as_json() for point in finding.curve],
                    "slope": finding.slope.as_json(),
                    "pairs": [_pair(pair) for pair in finding.pairs],
                    "largest_change": _pair(finding.widest),
                    "most_flips": _pair(finding.most_flips),
                    "p": {
                        "raw": _finite(finding.p_value),
                        "corrected": _finite(finding.p_corrected),
                        "equivalence": _finite(finding.p_equivalence),
                    },
                }
                for finding in audit.findings
            ],
            "gates": [gate.as_json() for gate in audit.gates],
            "refused": dict(audit.refused),
            "config": audit.config.model_dump(mode="json"),
        }


def doses_section(results: DoseResults, *, title: str) -> Section:
    """How scores follow the dose: curves with intervals, slopes and p-values."""
    audit = results.audit
    unfit = any(gate.state == "closed" for gate in audit.gates)
    largest = sorted(audit.findings, key=_reach, reverse=True)[:CHARTED]
    panels = [
        DotPanel(
            words(finding.target.name),
            [f"{dose:g} {audit.unit}" for dose in audit.doses],
            [Dots("mean change", [_ends(point) for point in finding.curve])],
            f"score less that at {audit.doses[0]:g} {audit.unit}; dotted: no change",
            marks=(0.0,),
        )
        for finding in largest
    ]
    rows: list[list[Cell]] = [
        [
            words(finding.target.name),
            VERDICTS[finding.verdict],
            spread(finding.slope, missing="not defined"),
            *(spread(point, missing="not defined") for point in finding.curve[1:]),
            f"{spread(finding.widest.mean, missing='not defined')}, {_span(finding.widest)}",
            f"{spread(finding.most_flips.flips, missing='not defined', percent=True)}, "
            f"{_span(finding.most_flips)}",
            finding.p_value,
            finding.p_corrected,
            finding.p_equivalence,
        ]
        for finding in audit.findings
    ]
    columns = [
        "Classifier, finding",
        "Verdict",
        f"Slope for each of the {audit.unit}",
        *(f"Change at {dose:g}" for dose in audit.doses[1:]),
        "Largest change between two doses",
        "Most flips between two doses",
        "p",
        f"p corrected ({words(audit.config.correction)})",
        "p of equivalence",
    ]
    about = f"n = {results.individuals} images, {results.patients} patients; 95 % intervals"
    blocks: list[Block] = [
        Curves([] if unfit else panels),
        Table(columns, rows, f"Changes from {audit.doses[0]:g} {audit.unit}; {about}", folded=unfit),
    ]
    lead = "Each image is generated at every dose, from the same abducted noise."
    if unfit:
        lead += " With a closed gate the numbers describe the generator as much as the classifier."
    return Section(f"{title}: how scores follow it", blocks, lead)


def dose_rows(results: Sequence[DoseResults]) -> list[tuple[DoseResults, DoseFinding]]:
    """Every finding with the results that it is of."""
    return [(each, finding) for each in results for finding in each.audit.findings]


def _reach(finding: DoseFinding) -> float:
    return abs(finding.widest.mean.value)


def _span(pair: DosePair) -> str:
    return f"{pair.first:g} to {pair.second:g}"


def _pair(pair: DosePair) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "mean": pair.mean.as_json(),
        "flips": pair.flips.as_json(),
        "p_equivalence": _finite(pair.p_equivalence),
    }


def _ends(point: Estimate) -> tuple[float, float, float]:
    return (point.value, point.low, point.high)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
