"""What an evaluation's numbers say, as report sections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from counterray.evaluation.charts import Dots
from counterray.evaluation.generator import EXACT, Evaluation
from counterray.evaluation.metric import Metric
from counterray.evaluation.report import (
    Block,
    Card,
    Cards,
    Cell,
    Curves,
    DotPanel,
    KeyValues,
    Missing,
    Section,
    Table,
    Text,
    format_number,
)
from counterray.evaluation.wording import BETTER, MEANINGS, QUESTIONS, words

_OF_FINDINGS = {
    "AUROC, real": "real_auroc",
    "AUROC, made": "effectiveness_auroc",
    "Ratio": "effectiveness_ratio",
    "F1, real": "real_f1",
    "F1, made": "generated_f1",
    "Diversity": "pairwise_distance_ratio",
}
"""Columns of the table of findings, and the metric that each shows."""


def interval(metric: Metric, *, percent: bool = False) -> str:
    """The 95 % interval for reading, empty where there is none."""
    if math.isnan(metric.low):
        return ""
    low, high = (f"{100 * end:.1f}" if percent else format_number(end) for end in (metric.low, metric.high))
    return f"{low} to {high}"


def metric_card(metric: Metric, label: str = "") -> Card:
    """A metric as a key number; shares of something are shown in percent."""
    share = metric.unit.startswith("of ")
    span = interval(metric, percent=share)
    details = [metric.unit if share else "", f"95 % interval {span}" if span else "", f"{metric.n} images"]
    details += [f"judge {metric.judge}" if metric.judge else ""]
    value = _value(metric)
    if share and isinstance(value, float):
        value = f"{100 * value:.1f}"
    return Card(
        label=label or words(metric.name),
        value=value,
        detail=", ".join(part for part in details if part),
        unit="%" if share else metric.unit,
    )


def metric_table(metrics: Sequence[Metric], *, caption: str = "", folded: bool = False) -> Table:
    """Metrics with interval, number of images, judge and direction; empty columns are left out."""
    columns: dict[str, list[Cell]] = {
        "Metric": [words(m.name) + (f", {m.subset.replace('_', ' ')}" if m.subset else "") for m in metrics],
        "Value": [_value(m) for m in metrics],
        "Unit": [m.unit for m in metrics],
        "95 % interval": [interval(m) for m in metrics],
        "Images": [m.n for m in metrics],
        "Better": [BETTER[m.direction] for m in metrics],
        "Judge": [m.judge or "" for m in metrics],
        # A missing value shows its note as the reason already.
        "Note": ["" if math.isnan(m.value) else m.note for m in metrics],
    }
    kept = {name: cells for name, cells in columns.items() if any(cell != "" for cell in cells)}
    return Table(list(kept), list(zip(*kept.values(), strict=True)), caption, folded)


def judges_section(metrics: Mapping[str, Sequence[Metric]]) -> Section:
    """Metrics of each judge on data it was not trained on."""
    blocks = [metric_table(list(rows), caption=name) for name, rows in metrics.items()]
    return Section(
        "Judges",
        blocks,
        "Frozen networks that score the images. A judge used in a loss is never the judge that scores.",
    )


def metrics_section(evaluation: Evaluation) -> Section:
    """All numbers by the question that they answer; those of single findings in a table, and folded."""
    names = evaluation.counterfactuals.source.finding_names
    details = [m for m in evaluation.metrics if _finding(m, names)]
    rest = [m for m in evaluation.metrics if not _finding(m, names)]
    tables: list[Block] = []
    for question, asked in QUESTIONS.items():
        tables.append(metric_table([m for m in rest if m.name in asked], caption=question))
        rest = [m for m in rest if m.name not in asked]
    reasons = [f"Not computed: {what}, because {reason}." for what, reason in evaluation.absent.items()]
    blocks: list[Block] = [
        *_effectiveness_chart(evaluation),
        *_findings_table(evaluation),
        *tables,
        metric_table(rest, caption="Further metrics"),
        Text(reasons),
        KeyValues(list(MEANINGS.items()), caption="What these numbers mean", folded=True),
        metric_table(details, caption=f"By finding ({len(details)} numbers)", folded=True),
    ]
    return Section("Metrics", blocks, "Intervals are 95 %, from resampling patients.")


def _findings_table(evaluation: Evaluation) -> list[Block]:
    """The findings side by side, the commonest first; nothing where there is no number of any of them."""
    made = evaluation.counterfactuals
    found = {
        column: {f: evaluation.find(name, f) for f in made.source.finding_names}
        for column, name in _OF_FINDINGS.items()
    }
    kept = {column: each for column, each in found.items() if any(each.values())}
    if not kept:
        return []
    counts = ((made.donor.findings > 0.5) & made.donor.finding_mask.bool()).sum(dim=0).tolist()
    asked = dict(zip(made.source.finding_names, counts, strict=True))
    rows: list[list[Cell]] = [
        [words(name), count, *(_with_interval(each[name]) for each in kept.values())]
        for name, count in sorted(asked.items(), key=lambda pair: -pair[1])
    ]
    judges = sorted({m.judge for each in kept.values() for m in each.values() if m and m.judge})
    about = (
        "By finding, what the judge reads from real images and from those made, with 95 % intervals; higher "
        "is better. The ratio of both AUROCs and the diversity are compared with real images, which have 1. "
        "“Images” is how many were asked to show the finding: with few of them a number says little, and “–” "
        f"stands where they allow none. Judged by {' and '.join(judges)}."
    )
    return [Text([about]), Table(["Finding", "Images", *kept], rows, "Finding by finding")]


def key_numbers_section(evaluation: Evaluation) -> Section:
    """The few numbers that sum the generator up; one that could not be computed says why."""
    wanted = (
        *(
            ("attribute_effectiveness", name, f"Read as the {words(name).lower()} asked for")
            for name in evaluation.counterfactuals.attributes
        ),
        ("effectiveness_auroc_macro", "", "Shows the target pathology (macro AUROC)"),
        ("identity_top1", "", "Recognised as the same patient"),
        ("area_deviation", "heart", "Heart area off the exact by (median)"),
        ("ground_truth_error", "", f"Error against the exact counterfactual{_no_edit(evaluation)}"),
        ("effectiveness_ratio_macro", "", "AUROC, compared with real images (macro)"),
        ("near_copies", "", "Nearly a training image"),
        ("off_target_change", "", "Change of findings not asked for"),
        ("reconstruction_ssim", "", "Reconstruction SSIM"),
        ("redrawing_error", "1 cycle", "Changed when asked for what it shows"),
    )
    found = ((evaluation.find(name, subset), label) for name, subset, label in wanted)
    # A law that holds whatever was learnt is no key number.
    shown = [metric_card(m, label) for m, label in found if m is not None and m.note != EXACT]
    return Section("Key numbers", [Cards(shown)])


def _no_edit(evaluation: Evaluation) -> str:
    """The same error without an edit, as no number for itself: most pixels are to stay."""
    baseline = evaluation.find("ground_truth_error", "no edit")
    return f" (no edit: {100 * baseline.value:.1f} %)" if baseline else ""


def _effectiveness_chart(evaluation: Evaluation) -> list[Block]:
    names = evaluation.counterfactuals.source.finding_names
    series = {
        "counterfactuals": "effectiveness_auroc",
        "real images": "real_auroc",
        "no edit": "no_edit_auroc",
    }
    shown = [name for name in names if evaluation.find("effectiveness_auroc", name)]
    if not shown:
        return []
    dots = [Dots(label, [_ends(evaluation.find(name, f)) for f in shown]) for label, name in series.items()]
    panel = DotPanel(
        "Does the counterfactual show what was asked for?",
        [words(name) for name in shown],
        dots,
        "AUROC of the judge, 1 is best; dotted: chance",
        marks=(0.5,),
    )
    return [Curves([panel])]


def _ends(metric: Metric | None) -> tuple[float, float, float]:
    return (metric.value, metric.low, metric.high) if metric else (math.nan, math.nan, math.nan)


def _value(metric: Metric) -> Cell:
    return Missing(metric.note) if math.isnan(metric.value) else metric.value


def _finding(metric: Metric, names: Sequence[str]) -> bool:
    """Whether a number is of a single finding, such as ``edema`` or ``edema, real``."""
    return metric.subset.split(", ")[0] in names


def _with_interval(metric: Metric | None) -> Cell:
    if metric is None or math.isnan(metric.value):
        return "–"
    value = f"{metric.value:.2f}"
    return value if math.isnan(metric.low) else f"{value} ({metric.low:.2f}–{metric.high:.2f})"
