"""`Report`: one self-contained HTML page, from sections that know nothing of what they show.

The page loads nothing: pictures are data URIs, charts are inline SVG, there is no script, and a content
security policy makes the browser refuse whatever else would get in. It follows the reader's light or dark
setting and prints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from markupsafe import Markup

from counterray.evaluation.charts import Dots, Line, dot_chart, line_chart
from counterray.evaluation.templates import page_templates


@dataclass(frozen=True)
class Missing:
    """A value that is not available, and why."""

    reason: str


Cell = str | float | int | Missing | None
"""What stands in a table; a NaN or ``None`` is shown as "not available"."""


@dataclass(frozen=True)
class Card:
    """One key number.

    Attributes:
        label: What it is.
        value: The number.
        detail: A line below it, such as its interval.
        unit: Of the value.
    """

    label: str
    value: Cell
    detail: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Cards:
    """Key numbers side by side."""

    cards: Sequence[Card]
    kind: ClassVar[str] = "cards"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.cards


@dataclass(frozen=True)
class Text:
    """Paragraphs; ``tone`` "warning" sets them apart."""

    paragraphs: Sequence[str]
    tone: Literal["plain", "warning"] = "plain"
    kind: ClassVar[str] = "text"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not any(self.paragraphs)


@dataclass(frozen=True)
class Table:
    """Rows under column names; numbers are aligned to the right.

    Attributes:
        columns: Names of the columns.
        rows: As many cells each as there are columns.
        caption: What the table shows.
        folded: Whether the reader opens it by a click; for long tables.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    folded: bool = False
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"Table {self.caption!r}: a row of {len(row)} cells under {len(self.columns)} columns."
                )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.rows


@dataclass(frozen=True)
class KeyValues:
    """Names and values, such as a provenance record."""

    items: Sequence[tuple[str, Cell]]
    caption: str = ""
    folded: bool = False
    kind: ClassVar[str] = "key_values"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.items


@dataclass(frozen=True)
class Panel:
    """One chart of curves."""

    title: str
    lines: Sequence[Line]
    x_label: str = "step"
    y_label: str = ""

    @property
    def svg(self) -> Markup:
        """The chart."""
        return line_chart(self.title, self.lines, x_label=self.x_label, y_label=self.y_label)


@dataclass(frozen=True)
class DotPanel:
    """One chart of values with intervals, a row each; ``marks`` are x positions of faint lines."""

    title: str
    rows: Sequence[str]
    series: Sequence[Dots]
    x_label: str
    marks: Sequence[float] = ()

    @property
    def svg(self) -> Markup:
        """The chart."""
        return dot_chart(self.title, self.rows, self.series, x_label=self.x_label, marks=self.marks)


@dataclass(frozen=True)
class Curves:
    """Charts side by side."""

    panels: Sequence[Panel | DotPanel]
    caption: str = ""
    kind: ClassVar[str] = "curves"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.panels


@dataclass(frozen=True)
class Legend:
    """Scale of a colour map: a CSS gradient and the words below its ends and middle."""

    title: str
    gradient: str
    low: str
    middle: str
    high: str


@dataclass(frozen=True)
class ImageRow:
    """One row of an image grid: a caption and a data URI, or ``None``, for each column."""

    caption: str
    images: Sequence[str | None]


@dataclass(frozen=True)
class ImageGrid:
    """Pictures in rows under column names."""

    columns: Sequence[str]
    rows: Sequence[ImageRow]
    caption: str = ""
    legend: Legend | None = None
    kind: ClassVar[str] = "image_grid"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.images) != len(self.columns):
                raise ValueError(
                    f"Image grid {self.caption!r}: a row of {len(row.images)} pictures under "
                    f"{len(self.columns)} columns."
                )
            # Anything else would be an address that the page asks for.
            if any(image is not None and not image.startswith("data:image/") for image in row.images):
                raise ValueError(f"Image grid {self.caption!r}: pictures must be data URIs.")

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.rows


Block = Cards | Text | Table | KeyValues | Curves | ImageGrid


@dataclass(frozen=True)
class Section:
    """A heading, a sentence of introduction, and blocks."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def anchor(self) -> str:
        """Name of the section's anchor in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def shown(self) -> list[Block]:
        """Blocks that have something to show."""
        return [block for block in self.blocks if not block.empty]


@dataclass
class Report:
    """A page in the making.

    Attributes:
        title: Heading of the page.
        subtitle: One or two sentences on what it is.
        notice: A warning at the top that no reader may miss.
        footer: A line at the end.
        sections: In order; one without anything to show is left out.
    """

    title: str
    subtitle: str = ""
    notice: str = ""
    footer: str = ""
    sections: list[Section] = field(default_factory=list)

    def add(self, section: Section) -> Report:
        """Appends a section and returns the report."""
        self.sections.append(section)
        return self

    def render(self) -> str:
        """The page as HTML; every value is escaped."""
        environment = page_templates()
        environment.filters["number"] = format_number
        environment.tests["absent"] = is_absent
        template = environment.get_template("report.html.jinja")
        return template.render(report=self, sections=[section for section in self.sections if section.shown])


def is_absent(cell: Cell) -> bool:
    """Whether a cell has no value: ``None``, `Missing` or NaN."""
    return cell is None or isinstance(cell, Missing) or (isinstance(cell, float) and math.isnan(cell))


def format_number(value: float | int | str) -> str:
    """A number for reading: three significant digits or so; a text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1000:
        text = f"{value:,.0f}".replace(",", "\u202f")
    elif size == 0 or size >= 0.001:
        text = f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size > 1 else 3}f}"
    else:
        text = f"{value:.1e}"
    return text.replace("-", "−")
