"""Sections on what changing the attribute does: effect sizes, p-values, flips and the errors they cause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from counterray.audits.findings import EffectAudit, Estimate, PairFinding
from counterray.audits.reporting.gallery import gallery
from counterray.audits.reporting.groups import LevelCount
from counterray.audits.reporting.results import AttributeResults
from counterray.audits.reporting.wording import VERDICTS, change, corrected_over, spread, words
from counterray.evaluation.charts import Dots
from counterray.evaluation.report import Block, Cell, Curves, DotPanel, Missing, Section, Table, Text

CHARTED = 16
"""Rows of a dot chart; those with the largest effects."""

FOLDED_FROM = 13
"""Rows from which a table is folded."""

DETAILED = 12
"""Findings whose flips are shown by observed level; those of most flips."""

_SIZES = {
    "Mean effect": "mean",
    "Median effect": "median",
    "Mean |effect|": "absolute",
    "The same of null interventions": "placebo",
    "Excess of |effect|": "excess",
    "Mean square": "mean_square",
    "Excess of the square (δ)": "excess_square",
}

_ERRORS = {
    "Missed only as {second}": "missed_at_second",
    "Missed only as {first}": "missed_at_first",
    "False alarm only as {second}": "alarm_at_second",
    "False alarm only as {first}": "alarm_at_first",
}


def effects_section(results: AttributeResults, *, title: str) -> Section:
    """Effect sizes with intervals, as charts and a table, and p-values raw and corrected."""
    blocks: list[Block] = []
    for audit in results.audits:
        unfit = any(gate.state == "closed" for gate in audit.gates)
        if unfit:
            blocks.append(
                Text(
                    [
                        f"Of the {audit.effect} effect numbers are listed for whoever mends the generator: "
                        "with a closed gate they describe the generator as much as the classifier, and are "
                        "no evidence for or against it."
                    ],
                    tone="warning",
                )
            )
        else:
            blocks.append(_charts(audit))
        long = unfit or len(audit.findings) >= FOLDED_FROM
        blocks += [
            _sizes(audit, folded=long),
            _p_values(audit, folded=long),
            _accuracy(audit, folded=long),
        ]
    audit = results.audits[0]
    placebo = (
        f"{audit.null_interventions} null interventions of each image"
        if audit.placebo_unit == "individual"
        else f"{audit.null_interventions} generators trained on shuffled levels"
    )
    return Section(
        f"{title}: how far scores move",
        blocks,
        f"{audit.individuals} images of {audit.patients} patients at the levels {', '.join(audit.levels)}; "
        f"what the generator does by itself is taken from {placebo}. An effect is the score at the "
        "second level less that at the first, on the scale of probability; intervals are 95 %, by patients.",
    )


def flips_section(results: AttributeResults, *, title: str) -> Section:
    """Decisions that change, in which direction, for whom, and which errors that causes."""
    blocks: list[Block] = []
    for audit in results.audits:
        largest = sorted(audit.findings, key=lambda f: -f.numbers["flip"].value)[:DETAILED]
        folded = len(largest) > 3 or any(gate.state == "closed" for gate in audit.gates)
        blocks.append(_flip_overview(audit, folded=len(audit.findings) >= FOLDED_FROM))
        if len(largest) < len(audit.findings):
            blocks.append(Text([f"By observed level: the {DETAILED} of most flips; the JSON has all."]))
        blocks += [
            _flip_table(audit, finding, results.counts.get(finding.target.name, {}), folded=folded)
            for finding in largest
        ]
    if results.examples:
        blocks.append(gallery(results.examples))
    return Section(
        f"{title}: decisions that change",
        blocks,
        "Share of images whose decision at the stated threshold differs between the two levels. Errors are "
        "shares of the images with the finding (missed) or without it (false alarms); a number of images in "
        "each cell says how much it can be worth. Rows are groups by observed level.",
    )


def _charts(audit: EffectAudit) -> Curves:
    strongest = sorted(audit.findings, key=lambda f: -f.numbers["absolute"].value)[:CHARTED]
    names = _row_names(audit, strongest)
    margins = audit.config.margins

    def dots(label: str, name: str) -> Dots:
        return Dots(label, [_ends(finding.numbers[name]) for finding in strongest])

    panels = [
        DotPanel(
            "In which direction do scores move?",
            names,
            [dots("mean effect", "mean")],
            "mean effect [probability]; dotted: no effect, and the margins",
            marks=(-margins.mean_effect, 0.0, margins.mean_effect),
        ),
        DotPanel(
            "How far, whatever the direction?",
            names,
            [dots("changing the attribute", "absolute"), dots("null intervention", "placebo")],
            "mean |effect| [probability]; dotted: the margin",
            marks=(margins.absolute_effect,),
        ),
        DotPanel(
            "How many decisions change?",
            names,
            [dots("flip rate", "flip"), dots("beyond null interventions", "excess_flip")],
            "share of images; dotted: the margin",
            marks=(margins.flip_rate,),
        ),
    ]
    caption = f"{audit.effect.capitalize()} effect of {words(audit.attribute)}"
    if len(audit.findings) > CHARTED:
        caption += f": the {CHARTED} largest of {len(audit.findings)}; the table has all"
    return Curves(panels, caption + ".")


def _sizes(audit: EffectAudit, *, folded: bool) -> Table:
    rows: list[list[Cell]] = [
        [name, *(spread(finding.numbers.get(key), missing="not defined") for key in _SIZES.values())]
        for name, finding in zip(_row_names(audit, audit.findings), audit.findings, strict=True)
    ]
    return Table(
        ["Change", *_SIZES],
        rows,
        f"Effect sizes, {audit.effect} effect: n = {audit.individuals} images, {audit.patients} patients",
        folded,
    )


def _p_values(audit: EffectAudit, *, folded: bool) -> Table:
    config = audit.config
    rows: list[list[Cell]] = [
        [
            name,
            VERDICTS[finding.verdict],
            finding.p_value,
            finding.p_corrected,
            finding.p_permutation,
            finding.p_bootstrap,
            finding.p_delta,
            *(finding.p_equivalence[key] for key in ("mean_effect", "absolute_effect", "flip_rate")),
            finding.detectable_effect,
            finding.patients_to_detect,
            finding.patients_for_equivalence,
        ]
        for name, finding in zip(_row_names(audit, audit.findings), audit.findings, strict=True)
    ]
    columns = [
        "Change",
        "Verdict",
        "p",
        f"p corrected ({words(config.correction)})",
        "p permutation",
        "p bootstrap",
        "p δ test",
        f"p |mean| ≥ {config.margins.mean_effect:g}",
        f"p |effect| ≥ {config.margins.absolute_effect:g}",
        f"p flips ≥ {config.margins.flip_rate:g}",
        "Detectable effect",
        "Patients to detect",
        "Patients for invariance",
    ]
    return Table(
        columns,
        rows,
        f"p-values, {audit.effect} effect: “p” is by the {config.test} test and decides “depends” at "
        f"{config.alpha:g} once corrected over {corrected_over(len(audit.findings))}; all three p of "
        f"equivalence have to be at most {config.alpha:g} for “invariant”. Detectable: with power "
        f"{config.power:g}",
        folded,
    )


def _accuracy(audit: EffectAudit, *, folded: bool) -> Table:
    rows: list[list[Cell]] = [
        [words(name), spread(estimate, missing="not defined", percent=True)]
        for name, estimate in audit.accuracy.items()
    ]
    return Table(
        ["Classifier, finding", "Decisions that survive a change of level"],
        rows,
        f"Expected counterfactual accuracy over changed levels, {audit.effect} effect: 100 % is best",
        folded,
    )


def _flip_overview(audit: EffectAudit, *, folded: bool) -> Table:
    names = ("flip", "excess_flip", "up", "down", *_ERRORS.values())
    rows: list[list[Cell]] = [
        [name, *(spread(f.numbers.get(key), missing="nobody known", percent=True) for key in names)]
        for name, f in zip(_row_names(audit, audit.findings), audit.findings, strict=True)
    ]
    errors = [text.format(first="first level", second="second level") for text in _ERRORS]
    return Table(
        ["Change", "Flips", "Beyond null interventions", "Turn positive", "Turn negative", *errors],
        rows,
        f"All {audit.individuals} images of {audit.patients} patients, {audit.effect} effect",
        folded,
    )


def _flip_table(
    audit: EffectAudit, finding: PairFinding, counts: Mapping[str, LevelCount], *, folded: bool
) -> Table:
    errors = {text.format(first=finding.first, second=finding.second): key for text, key in _ERRORS.items()}
    rows: list[list[Cell]] = []
    for level in ("", *audit.levels):
        suffix = f"@{level}" if level else ""
        chosen = [counts[level]] if level in counts else [] if level else list(counts.values())
        ill, healthy = sum(c.ill for c in chosen), sum(c.healthy for c in chosen)
        images = sum(c.images for c in chosen) if chosen else Missing("not counted")
        cells = [
            spread(finding.numbers.get(f"{name}{suffix}"), missing="nobody", percent=True)
            for name in ("flip", "up", "down")
        ]
        for key in errors.values():
            size = ill if key.startswith("missed") else healthy
            shown = spread(finding.numbers.get(f"{key}{suffix}"), missing="nobody known", percent=True)
            cells.append(f"{shown}, n = {size}" if isinstance(shown, str) and chosen else shown)
        rows.append([level or "All", images, *cells])
    caption = (
        f"{words(finding.target.name)}, {change(audit, finding)}, {audit.effect} effect, threshold "
        f"{finding.target.threshold:.3g}"
    )
    columns = ["Observed level", "Images", "Flips", "Turn positive", "Turn negative", *errors]
    return Table(columns, rows, caption, folded)


def _row_names(audit: EffectAudit, findings: Sequence[PairFinding]) -> list[str]:
    """Target and change; the classifier is left out where there is one."""
    one = len({finding.target.classifier for finding in audit.findings}) == 1
    return [
        f"{words(finding.target.finding if one else finding.target.name)}: {finding.first} → {finding.second}"
        for finding in findings
    ]


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    """Without an interval the value stands for its ends, so that the dot is drawn."""
    if math.isnan(estimate.low):
        return (estimate.value, estimate.value, estimate.value)
    return (estimate.value, estimate.low, estimate.high)
