"""What an evaluation says, as report sections: here the numbers and pictures get their words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from counterray.config import flatten
from counterray.data.dataset import DatasetManifest
from counterray.data.study import Batch
from counterray.evaluation.charts import Line
from counterray.evaluation.counterfactuals import Counterfactuals
from counterray.evaluation.pictures import EFFECT_RANGE, effect_gradient, effect_picture, grey_picture
from counterray.evaluation.report import (
    Block,
    Cell,
    Curves,
    ImageGrid,
    ImageRow,
    KeyValues,
    Legend,
    Panel,
    Section,
    Table,
    Text,
)
from counterray.evaluation.text_condition import TextCondition
from counterray.evaluation.wording import LIMITS, words

_NOT_CURVES = ("step", "epoch", "split", "time")


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
    read = manifest.notes.get("labels_from_reports", 0)
    if read:
        lead += f" {read} labels are what reports were read to say, not what a reader of the images said."
    return Section("Dataset", blocks, lead)


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


def counterfactual_section(
    made: Counterfactuals, *, rows: Sequence[int] | None = None, condition: TextCondition | None = None
) -> Section:
    """Inputs with another patient's pathology, the direct effect, and the truth where it is known.

    Args:
        made: What to show.
        rows: Which of them; `instructive_rows` where ``None``.
        condition: What the generator was told of the donors, where it reads words.
    """
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
        if condition is not None and condition.quoted(row):
            caption += f"; told {condition.quoted(row)}"
        grid_rows.append(ImageRow(caption, images))
    return Section(
        "Counterfactuals",
        [
            *([Text([condition.paragraph])] if condition else []),
            ImageGrid(columns, grid_rows, legend=_legend("Direct effect: counterfactual − input")),
        ],
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


def provenance_section(
    facts: Mapping[str, Cell], *, bundles: Mapping[str, str], config: Mapping[str, Any]
) -> Section:
    """Where the numbers come from.

    Args:
        facts: Code version, data fingerprint, seeds and the like.
        bundles: Role of each bundle to its checksum.
        config: The resolved configuration.
    """
    settings: list[tuple[str, Cell]] = [(name, _plain(value)) for name, value in flatten(config).items()]
    return Section(
        "Provenance",
        [
            KeyValues(
                [*facts.items(), *((f"Bundle {role}", checksum) for role, checksum in bundles.items())]
            ),
            KeyValues(settings, caption="Resolved configuration", folded=True),
        ],
        "What it takes to repeat these numbers.",
    )


def limits_section(*paragraphs: str) -> Section:
    """What the numbers do not say, the given paragraphs last."""
    return Section("Limits", [Text([*LIMITS, *paragraphs])])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _legend(title: str) -> Legend:
    end = f"{EFFECT_RANGE / 2:.0%}"
    return Legend(title, effect_gradient(), f"−{end} darker", "unchanged", f"brighter +{end}")


def _count(value: int | Mapping[str, int]) -> int:
    # A finding's images are counted by label; a reader looks for the positives.
    return value["present"] if isinstance(value, Mapping) else value


def _letter(index: int) -> str:
    """A, B … Z, AA, AB …: a name that identifies nobody."""
    first, last = divmod(index, 26)
    return (_letter(first - 1) if first else "") + chr(ord("A") + last)
