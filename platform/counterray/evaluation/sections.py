"""What an evaluation says, as report sections: here the numbers and pictures get their words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from counterray.data.dataset import DatasetManifest
from counterray.data.study import Batch
from counterray.evaluation.charts import Dots, Line
from counterray.evaluation.counterfactuals import Counterfactuals
from counterray.evaluation.generator import Evaluation
from counterray.evaluation.metric import Metric
from counterray.evaluation.pictures import EFFECT_RANGE, effect_gradient, effect_picture, grey_picture
from counterray.evaluation.report import (
    Block,
    Card,
    Cards,
    Cell,
    Curves,
    DotPanel,
    ImageGrid,
    ImageRow,
    KeyValues,
    Legend,
    Missing,
    Panel,
    Report,
    Section,
    Table,
    Text,
    format_number,
)
from counterray.evaluation.wording import BETTER, LIMITS, MEANINGS, QUESTIONS, SYNTHETIC_NOTICE, words

_NOT_CURVES = ("step", "epoch", "split", "time")


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


def dataset_section(manifest: DatasetManifest) -> Section:
    """Counts by split, finding, sex and age band; what was set aside; the fingerprint."""
    splits = list(manifest.counts)
    rows: list[list[Cell]] = [
        [what, *(int(manifest.counts[s][key]) for s in splits)]
        for what, key in (("Images", "studies"), ("Patients, none in two splits", "patients"))
    ]
    for what, key in (("Positive for {}", "findings"), ("Sex {}", "sex"), ("Age {} years", "age_band")):
        groups = {s: manifest.counts[s].get(key, {}) for s in splits}
        names = list(dict.fromkeys(name for s in splits for name in groups[s]))
        rows += [
            [
                what.format(name.replace("_", " ").replace("-", "–")),
                *(_count(groups[s].get(name, 0)) for s in splits),
            ]
            for name in names
        ]
    blocks: list[Block] = [Table(["", *(words(s) for s in splits)], rows)]
    aside: list[list[Cell]] = [[words(why), count] for why, count in sorted(manifest.quarantined.items())]
    blocks.append(Table(["Set aside because", "Images"], aside))
    lead = (
        f"Source {manifest.source}, images of {manifest.image_size} × {manifest.image_size} px. "
        f"{sum(manifest.quarantined.values())} images were set aside."
    )
    return Section("Dataset", blocks, lead)


def judges_section(metrics: Mapping[str, Sequence[Metric]]) -> Section:
    """Metrics of each judge on data it was not trained on."""
    blocks = [metric_table(list(rows), caption=name) for name, rows in metrics.items()]
    return Section(
        "Judges",
        blocks,
        "Frozen networks that score the images. A judge used in a loss is never the judge that scores.",
    )


def curves_section(records: Sequence[Mapping[str, Any]], *, title: str = "Training curves") -> Section:
    """A chart for each metric of a training log, train and validation together.

    Args:
        records: Lines of the log: ``step``, ``split`` and any number of named values; those of one family,
            such as ``auroc.edema`` and ``auroc.fracture``, share a chart. Values that are not finite
            numbers are left out.
        title: Heading.
    """
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        for name, value in record.items():
            if name in _NOT_CURVES or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                chart, _, part = name.partition(".")
                line = " ".join([part.replace("_", " "), str(record.get("split", "train"))]).strip()
                point = (float(record["step"]), float(value))
                charts.setdefault(chart, {}).setdefault(line, []).append(point)
    panels = [
        Panel(
            words(chart.replace("/", " ")),
            [Line(line, *map(list, zip(*sorted(points), strict=True))) for line, points in lines.items()],
            x_label="optimizer step",
        )
        for chart, lines in charts.items()
    ]
    return Section(title, [Curves(panels)])


def reconstruction_section(made: Counterfactuals, *, count: int = 6) -> Section:
    """Input, reconstruction and their difference for the first ``count`` images, a column each."""
    shown = range(min(count, len(made)))
    inputs, painted = made.source.image, made.reconstruction
    grid = ImageGrid(
        [f"Patient {_letter(row)}" for row in shown],
        [
            ImageRow("Input", [grey_picture(inputs[row]) for row in shown]),
            ImageRow("Reconstruction", [grey_picture(painted[row]) for row in shown]),
            ImageRow("Difference", [effect_picture(painted[row], inputs[row]) for row in shown]),
        ],
        legend=_legend("Difference: reconstruction − input"),
    )
    return Section(
        "Reconstructions", [grid], "The null intervention: the generator repaints each image unchanged."
    )


def counterfactual_section(made: Counterfactuals, *, rows: Sequence[int] | None = None) -> Section:
    """Inputs with another patient's pathology, the direct effect, and the truth where it is known."""
    chosen = list(rows) if rows is not None else instructive_rows(made)
    columns = ["Input", "Pathology from", "Counterfactual", "Direct effect"]
    if made.exact is not None:
        columns += ["Exact counterfactual", "Its direct effect"]
    grid_rows = []
    for place, row in enumerate(chosen):
        patient, donor = _letter(2 * place), _letter(2 * place + 1)
        before = made.source.image[row]
        images = [
            grey_picture(before),
            grey_picture(made.donor.image[row]),
            grey_picture(made.image[row]),
            effect_picture(made.image[row], before),
        ]
        if made.exact is not None:
            images += [grey_picture(made.exact[row]), effect_picture(made.exact[row], before)]
        caption = (
            f"Patient {patient} ({findings_text(made.source, row)}) + pathology of patient {donor}: "
            f"{findings_text(made.donor, row)}"
        )
        grid_rows.append(ImageRow(caption, images))
    return Section(
        "Counterfactuals",
        [ImageGrid(columns, grid_rows, legend=_legend("Direct effect: counterfactual − input"))],
        "“Had this patient had that patient's pathology”: anatomy should stay, pathology should come over. "
        "All maps share one fixed scale, in percent of the range from black to white.",
    )


def instructive_rows(made: Counterfactuals, count: int = 8) -> list[int]:
    """Rows to show: for each finding in turn, one where it appears and one where it goes.

    The first rows of a test split would mostly show healthy images swapped for healthy ones.
    """
    target = made.donor.findings > 0.5
    chosen: list[int] = []
    for wanted in (True, False):
        for finding in range(target.shape[1]):
            matching = made.changed[:, finding] & (target[:, finding] == wanted)
            # Few other changes make the picture easier to read.
            order = made.changed.sum(dim=1).argsort(stable=True).tolist()
            fresh = (row for row in order if matching[row] and row not in chosen)
            chosen += [row for row in [next(fresh, -1)] if row >= 0]
    rest = (row for row in range(len(made)) if row not in chosen)
    return (chosen or list(rest))[:count]


def findings_text(batch: Batch, row: int) -> str:
    """The row's positive findings for reading; "no finding" where all known labels are negative."""
    known = batch.finding_mask[row].bool()
    present = [
        name.replace("_", " ")
        for k, name in enumerate(batch.finding_names)
        if known[k] and batch.findings[row, k] > 0.5
    ]
    if present:
        return ", ".join(present)
    return "no finding" if known.any() else "findings not known"


def metrics_section(evaluation: Evaluation) -> Section:
    """All numbers by the question that they answer; those of single findings folded."""
    details = [m for m in evaluation.metrics if m.subset in evaluation.counterfactuals.source.finding_names]
    rest = [m for m in evaluation.metrics if m not in details]
    tables: list[Block] = []
    for question, names in QUESTIONS.items():
        tables.append(metric_table([m for m in rest if m.name in names], caption=question))
        rest = [m for m in rest if m.name not in names]
    reasons = [f"Not computed: {what}, because {reason}." for what, reason in evaluation.absent.items()]
    blocks: list[Block] = [
        *_effectiveness_chart(evaluation),
        *tables,
        metric_table(rest, caption="Further metrics"),
        Text(reasons),
        KeyValues(list(MEANINGS.items()), caption="What these numbers mean", folded=True),
        metric_table(details, caption=f"By finding ({len(details)} numbers)", folded=True),
    ]
    return Section("Metrics", blocks, "Intervals are 95 %, from resampling patients.")


def key_numbers_section(evaluation: Evaluation) -> Section:
    """The few numbers that sum the generator up; one that could not be computed says why."""
    wanted = (
        ("effectiveness_auroc_macro", "", "Shows the target pathology (macro AUROC)"),
        ("identity_top1", "", "Recognised as the same patient"),
        ("area_deviation", "heart", "Heart area off the exact by (median)"),
        ("ground_truth_error", "", "Error against the exact counterfactual"),
        ("off_target_change", "", "Change of findings not asked for"),
        ("reconstruction_ssim", "", "Reconstruction SSIM"),
    )
    found = ((evaluation.find(name, subset), label) for name, subset, label in wanted)
    return Section("Key numbers", [Cards([metric_card(m, label) for m, label in found if m is not None])])


def provenance_section(
    facts: Mapping[str, Cell], *, bundles: Mapping[str, str], config: Mapping[str, Any]
) -> Section:
    """Where the numbers come from.

    Args:
        facts: Code version, data fingerprint, seeds and the like.
        bundles: Role of each bundle to its checksum.
        config: The resolved configuration.
    """
    return Section(
        "Provenance",
        [
            KeyValues(
                [*facts.items(), *((f"Bundle {role}", checksum) for role, checksum in bundles.items())]
            ),
            KeyValues(list(flatten(config).items()), caption="Resolved configuration", folded=True),
        ],
        "What it takes to repeat these numbers.",
    )


def generator_report(
    evaluation: Evaluation,
    *,
    title: str,
    subtitle: str,
    manifest: DatasetManifest,
    facts: Mapping[str, Cell],
    bundles: Mapping[str, str],
    config: Mapping[str, Any],
    judges: Mapping[str, Sequence[Metric]] | None = None,
    records: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    limits: Sequence[str] = (),
) -> Report:
    """The whole report of a generator.

    Args:
        evaluation: From `evaluate_counterfactuals`.
        title: Heading.
        subtitle: What it is, in a sentence.
        manifest: Of the dataset whose images were edited.
        facts: Code version, data fingerprint, seeds and the like.
        bundles: Role to checksum, of the generator and the judges.
        config: The generator's resolved configuration.
        judges: Name of each judge to its metrics on data it was not trained on.
        records: Name of each stage to the lines of its training log.
        limits: Further paragraphs on what the numbers do not say.
    """
    report = Report(title, subtitle, SYNTHETIC_NOTICE, f"Made by counterray {facts.get('Code version', '')}.")
    made = evaluation.counterfactuals
    for section in (
        key_numbers_section(evaluation),
        counterfactual_section(made),
        metrics_section(evaluation),
        reconstruction_section(made),
        judges_section(judges or {}),
        *(curves_section(lines, title=f"Training: {stage}") for stage, lines in (records or {}).items()),
        dataset_section(manifest),
        provenance_section(facts, bundles=bundles, config=config),
        limits_section(*limits),
    ):
        report.add(section)
    return report


def limits_section(*paragraphs: str) -> Section:
    """What the numbers do not say, the given paragraphs last."""
    return Section("Limits", [Text([*LIMITS, *paragraphs])])


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Cell]:
    """Nested settings by dotted name, as ``--set`` takes them."""
    flat: dict[str, Cell] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _legend(title: str) -> Legend:
    end = f"{EFFECT_RANGE / 2:.0%}"
    return Legend(title, effect_gradient(), f"−{end} darker", "unchanged", f"brighter +{end}")


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


def _count(value: int | Mapping[str, int]) -> int:
    # A finding's images are counted by label; a reader looks for the positives.
    return value["present"] if isinstance(value, Mapping) else value


def _letter(index: int) -> str:
    """A, B … Z, AA, AB …: a name that identifies nobody."""
    first, last = divmod(index, 26)
    return (_letter(first - 1) if first else "") + chr(ord("A") + last)
