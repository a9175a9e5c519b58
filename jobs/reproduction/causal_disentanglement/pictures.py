"""The same patients' counterfactuals by every arm, beside each other and the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from counterray.evaluation.counterfactuals import Counterfactuals
from counterray.evaluation.pictures import grey_picture
from counterray.evaluation.report import ImageGrid, ImageRow, Section
from counterray.evaluation.sections import findings_text, instructive_rows
from jobs.reproduction.bars import Measured

_ROWS = 6


def picture_rows(made: Counterfactuals) -> list[dict[str, str]]:
    """A few instructive rows as ``caption`` and the data URIs ``input``, ``made`` and, if known, ``exact``.

    They are chosen by labels alone, so that all arms show the same patients.
    """
    rows = []
    for row in instructive_rows(made, _ROWS):
        asked = f"{findings_text(made.source, row)}; asked for: {findings_text(made.donor, row)}"
        images = {"input": made.source.image[row], "made": made.image[row]}
        if made.exact is not None:
            images["exact"] = made.exact[row]
        rows.append({"caption": asked, **{name: grey_picture(image) for name, image in images.items()}})
    return rows


def pictures_section(scores: Mapping[str, Sequence[Measured]], labels: Mapping[str, str]) -> Section:
    """Input, counterfactual by each arm, exact counterfactual; of the first seed.

    Args:
        scores: Arm to what each seed measured, with its `picture_rows`.
        labels: Arm to what the tables call it.
    """
    first = {arm: seeds[0]["pictures"] for arm, seeds in scores.items()}
    grid = [
        ImageRow(
            rows[0]["caption"],
            [rows[0]["input"], *(row["made"] for row in rows), rows[0].get("exact")],
        )
        for rows in zip(*first.values(), strict=True)
    ]
    columns = ["Input", *(labels[arm] for arm in first), "Exact counterfactual"]
    return Section(
        "Pictures",
        [ImageGrid(columns, grid)],
        "The first seed: what each patient shows, and what was asked for in words.",
    )
