"""A contact sheet: many counterfactuals on one self-contained page, each beside its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from counterray.evaluation.pictures import EFFECT_RANGE, effect_gradient, effect_picture, grey_picture
from counterray.evaluation.templates import page_templates
from counterray.evaluation.wording import SYNTHETIC_NOTICE

TILE_PICTURE_SIZE = 128
"""Edge of a picture [px]; smaller than in a report, since a sheet shows many."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One counterfactual.

    Attributes:
        caption: What it is, without identifiers.
        before: The image that was edited, ``[1, H, W]`` in [-1, 1].
        after: The counterfactual, as ``before``.
        donor: The image whose pathology it took, where there is one.
    """

    caption: str
    before: Tensor
    after: Tensor
    donor: Tensor | None = None

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """Name and data URI of each picture, in reading order."""
        shown = [("Input", grey_picture(self.before, size=TILE_PICTURE_SIZE))]
        if self.donor is not None:
            shown.append(("Pathology from", grey_picture(self.donor, size=TILE_PICTURE_SIZE)))
        shown.append(("Counterfactual", grey_picture(self.after, size=TILE_PICTURE_SIZE)))
        shown.append(("Difference", effect_picture(self.after, self.before, size=TILE_PICTURE_SIZE)))
        return shown


def contact_sheet(
    tiles: Sequence[Tile], *, title: str, lead: str, facts: Mapping[str, str], footer: str = ""
) -> str:
    """The page as HTML; every value is escaped, nothing is loaded, and there is no script.

    Difference maps share one fixed scale, so that tiles can be compared.

    Args:
        tiles: The counterfactuals.
        title: Heading.
        lead: What was asked for, and how many there are beyond those shown.
        facts: Provenance: name to value.
        footer: A line at the end.
    """
    template = page_templates().get_template("contact_sheet.html.jinja")
    return template.render(
        tiles=tiles,
        title=title,
        lead=lead,
        notice=SYNTHETIC_NOTICE,
        facts=facts,
        footer=footer,
        gradient=effect_gradient(),
        end=f"{EFFECT_RANGE / 2:.0%}",
    )
