"""Sections on groups of different people, on associational tests of them, and on the causal graph."""

from __future__ import annotations

import math
from collections.abc import Sequence

from counterray.audits.findings import Estimate
from counterray.audits.group_performance import GroupPerformance, GroupValue
from counterray.audits.reporting.groups import Association
from counterray.audits.reporting.results import AttributeResults
from counterray.audits.reporting.verdicts import deciding
from counterray.audits.reporting.wording import TESTS, VERDICTS, WHY_TESTS_DISAGREE, spread, words
from counterray.audits.verdicts import Verdict
from counterray.evaluation.charts import Dots
from counterray.evaluation.report import Block, Cell, Curves, DotPanel, Missing, Section, Table, Text

CHARTED = 12
"""Targets of a chart of AUROC by group."""

_METRICS = {
    "AUROC": "auroc",
    "Sensitivity": "sensitivity",
    "Specificity": "specificity",
    "Positive calls": "selection_rate",
    "Calibration error": "calibration_error",
    "Brier score": "brier",
}


def performance_section(results: AttributeResults, *, title: str) -> Section:
    """AUROC, sensitivity, specificity and calibration by observed level."""
    made = {name: p for name, p in results.performance.items() if isinstance(p, GroupPerformance)}
    rows: list[list[Cell]] = []
    for name, found in made.items():
        for level, metrics in found.by_level.items():
            counts: list[Cell] = [int(metrics["count"].value), int(metrics["positives"].value)]
            values = [spread(_estimate(metrics[key]), missing="not defined") for key in _METRICS.values()]
            rows.append([words(name), level, *counts, *values])
        gaps: list[Cell] = [_gap(found.difference[key]) for key in _METRICS.values()]
        rows.append([words(name), "largest − smallest", "", "", *gaps])
    left_out: list[list[Cell]] = [
        [words(name), p.reason] for name, p in results.performance.items() if isinstance(p, Missing)
    ]
    blocks: list[Block] = [
        *([_auroc_chart(results, made)] if made else []),
        Table(["Classifier, finding", "Level", "Images", "With the finding", *_METRICS], rows),
        Table(["Classifier, finding", "No performance by group, because"], left_out, "Left out"),
    ]
    return Section(
        f"{title}: performance by group",
        blocks,
        "On observed images with a known label. Higher is better for AUROC, sensitivity and specificity, "
        "lower for the calibration error (expected, ten bins) and the Brier score. Groups are different "
        "people: a gap here has many possible causes.",
    )


def associations_section(results: AttributeResults, *, title: str) -> Section:
    """Associational tests beside the verdict, and why they may disagree with it."""
    missing = results.without_cit_lr.rstrip(".")
    verdicts = results.audits[0].verdicts()
    alpha = results.audits[0].config.alpha
    rows: list[list[Cell]] = [
        [
            words(each.target),
            TESTS[each.test],
            each.quantity,
            Missing(each.reason) if math.isnan(each.value) else each.value,
            each.n,
            Missing(each.reason) if math.isnan(each.p_value) else each.p_value,
            each.p_corrected,
            _rates(each),
            _beside(each, verdicts.get(each.target), alpha),
        ]
        for each in results.associations
    ]
    columns = ["Classifier, finding", "Test", "Quantity", "Value", "Images", "p", "p corrected (Holm)"]
    return Section(
        f"{title}: associational tests beside it",
        [
            Text(list(WHY_TESTS_DISAGREE) if rows else []),
            Text([f"CIT-LR is not among them: {missing}."] if missing else []),
            Table([*columns, "Rates", "Beside the verdict"], rows, f"{len(rows)} tests", len(rows) > 24),
        ],
        "Tests that look at observed images only. They answer other questions than the verdict does.",
    )


def causes_section(results: AttributeResults, *, title: str) -> Section:
    """The stated graph: which paths there are, which are legitimate; and total beside direct effects."""
    blocks: list[Block] = []
    effects = [audit.effect for audit in results.audits]
    if results.causes is None:
        blocks.append(
            Text(
                [
                    "No causal graph was stated. Read the effect as that of everything that the generator "
                    "changes along with the attribute, legitimate or not."
                ],
                tone="warning",
            )
        )
    else:
        rows: list[list[Cell]] = [
            [
                str(path),
                "direct" if path.direct else "through what lies between",
                "legitimate" if path.legitimate else "not declared legitimate",
                path.reason or "",
            ]
            for path in results.causes.paths(results.attribute)
        ]
        columns = ["Path", "Kind", "As stated", "Reason"]
        blocks.append(Table(columns, rows, f"{len(rows)} paths", len(rows) > 15))
        if not rows:
            blocks.append(
                Text([f"By this graph {words(results.attribute)} does not reach {results.causes.outcome}."])
            )
        blocks.append(Text([_reading(rows, effects)]))
    if len(results.audits) == 2:
        blocks.append(_both_effects(results))
    return Section(
        f"{title}: causal graph as stated",
        blocks,
        "Whether an effect is a fault is no matter of statistics: it depends on which paths from the "
        "attribute to the image are meant to be there. This is stated by the audit's user and not tested.",
    )


def _reading(rows: Sequence[Sequence[Cell]], effects: Sequence[str]) -> str:
    legitimate = sum(row[2] == "legitimate" for row in rows)
    parts = [f"{legitimate} of {len(rows)} paths are declared legitimate."]
    if "total" in effects:
        parts.append(
            "The total effect counts all of them" + (", the legitimate ones too." if legitimate else ".")
        )
    if "direct" in effects:
        parts.append("The direct effect holds everything between fixed and counts the direct path alone.")
    if effects == ["total"] and legitimate:
        parts.append(
            "A dependence found here may therefore be a legitimate one; the direct effect would tell."
        )
    return " ".join(parts)


def _both_effects(results: AttributeResults) -> Table:
    rows: list[list[Cell]] = []
    for target in results.audits[0].verdicts():
        cells: list[Cell] = [words(target)]
        for audit in results.audits:
            if target not in audit.verdicts():
                cells += [Missing("not audited"), Missing("not audited")]
                continue
            finding = deciding(audit, target)
            cells.append(VERDICTS[finding.verdict])
            cells.append(spread(finding.numbers["absolute"], missing="not defined"))
        rows.append(cells)
    columns = ["Classifier, finding"]
    for audit in results.audits:
        columns += [f"{audit.effect.capitalize()} effect", f"Mean |{audit.effect} effect|"]
    return Table(columns, rows, "Total and direct effect; of several pairs of levels the one that decides")


def _auroc_chart(results: AttributeResults, made: dict[str, GroupPerformance]) -> Curves:
    shown = list(made)[:CHARTED]
    levels = list(results.audits[0].levels)
    series = [Dots(level, [_ends(made[name].by_level[level]["auroc"]) for name in shown]) for level in levels]
    panel = DotPanel(
        "How well does it tell ill from healthy in each group?",
        [words(name) for name in shown],
        series,
        "AUROC, 1 is best; dotted: chance",
        marks=(0.5,),
    )
    more = f"The first {CHARTED} of {len(made)}; the table has all." if len(made) > CHARTED else ""
    return Curves([panel], more)


def _beside(test: Association, verdict: Verdict | None, alpha: float) -> str:
    if verdict in (None, "cannot_tell", "inconclusive") or math.isnan(test.p_value):
        return "nothing to compare with"
    seen = test.p_corrected <= alpha
    if verdict == "depends":
        return "agrees" if seen else "did not see the dependence"
    return "groups differ, yet not by what the attribute does" if seen else "does not contradict"


def _rates(test: Association) -> str:
    return "; ".join(
        f"{name}: {'unknown' if math.isnan(rate) else f'{rate:.1%}'}" for name, rate in test.rates.items()
    )


def _gap(value: float) -> Cell:
    return Missing("not defined") if math.isnan(value) else value


def _estimate(value: GroupValue) -> Estimate:
    return Estimate(value.value, value.low, value.high)


def _ends(value: GroupValue) -> tuple[float, float, float]:
    if math.isnan(value.low):
        return (value.value, value.value, value.value)
    return (value.value, value.low, value.high)
