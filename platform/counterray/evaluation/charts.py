"""Charts as inline SVG that follows the page's colours, so that one file serves light, dark and print."""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SERIES_COLOURS = 6
"""Colours for series in the page's style sheet; more series repeat them with another line."""

_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "D", "s", "^", "v", "P")

# Stand-ins that matplotlib draws with; the SVG then names the style sheet's variables in their place.
_INK, _FAINT = "#010101", "#020202"
_SERIES = tuple(f"#0300{number:02x}" for number in range(1, SERIES_COLOURS + 1))
_VARIABLES = {_INK: "var(--muted)", _FAINT: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)
}


@dataclass(frozen=True)
class Line:
    """One curve: a name and its points, in order of x."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Dots:
    """One series of a dot plot: for each row a value and the ends of its interval; NaN where unknown."""

    name: str
    values: Sequence[tuple[float, float, float]]


# A "$" in a name is a dollar sign, not the start of a formula; matplotlib reads this when it makes a text.
_plain_text = matplotlib.rc_context({"text.parse_math": False})


@_plain_text
def line_chart(title: str, lines: Sequence[Line], *, x_label: str, y_label: str = "") -> Markup:
    """Curves over a common x axis, with the last value of each in the legend."""
    figure, axes = _figure(height=2.7)
    for number, line in enumerate(lines):
        label = f"{line.name}  {_short(line.y[-1])}" if len(line.y) else line.name
        axes.plot(
            line.x,
            line.y,
            color=_SERIES[number % SERIES_COLOURS],
            linestyle=_LINES[number % len(_LINES)],
            linewidth=1.6,
            marker=_MARKERS[number % len(_MARKERS)] if len(line.x) < 30 else None,
            markersize=3.5,
            label=label,
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(figure)
    spoken = (
        f"{line.name} from {_short(line.y[0])} to {_short(line.y[-1])}, lowest {_short(min(line.y))}, "
        f"highest {_short(max(line.y))}"
        for line in lines
        if len(line.y)
    )
    return _inline_svg(figure, f"{title} by {x_label}. {'; '.join(spoken)}.")


@_plain_text
def dot_chart(
    title: str, rows: Sequence[str], series: Sequence[Dots], *, x_label: str, marks: Sequence[float] = ()
) -> Markup:
    """Values with intervals, a row each; ``marks`` are x positions of faint lines, such as chance."""
    figure, axes = _figure(height=1.1 + 0.34 * len(rows))
    axes.grid(visible=False, axis="y")
    for mark in marks:
        axes.axvline(mark, color=_INK, linewidth=0.8, linestyle=(0, (2, 3)))
    spread = 0.2 if len(series) > 1 else 0.0
    for number, dots in enumerate(series):
        offset = spread * (2 * number / max(1, len(series) - 1) - 1)
        points = [
            (row + offset, *values) for row, values in enumerate(dots.values) if not math.isnan(values[0])
        ]
        colour = _SERIES[number % SERIES_COLOURS]
        axes.hlines([p[0] for p in points], [p[2] for p in points], [p[3] for p in points], colors=colour)
        axes.plot(
            [p[1] for p in points],
            [p[0] for p in points],
            color=colour,
            linestyle="",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            label=dots.name,
        )
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(x_label)
    _legend(figure)
    spoken = (
        f"{row}: " + ", ".join(f"{dots.name} {_short(dots.values[k][0])}" for dots in series)
        for k, row in enumerate(rows)
    )
    return _inline_svg(figure, f"{title}, {x_label}. {'; '.join(spoken)}.")


def _figure(*, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, height), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.grid(visible=True, color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(length=0, colors=_INK, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        legend = figure.legend(
            handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9, handlelength=1.8
        )
        for text in legend.get_texts():
            text.set_color(_INK)


def _short(value: float) -> str:
    return "not available" if math.isnan(value) else f"{value:.3g}"


def _inline_svg(figure: Figure, spoken: str) -> Markup:
    """The figure's SVG without anything that an HTML page must not repeat or fetch."""
    stream = io.StringIO()
    # Text stays text, which can be searched; the salt keeps names unique across a page's charts.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": spoken}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    for node in root.iter():
        node.tag = node.tag.partition("}")[2]
        for name in [n for n in node.attrib if n.startswith("{")]:
            node.set(name.partition("}")[2], node.attrib.pop(name))
        if node.tag == "g":
            node.attrib.pop("id", None)
        if "style" in node.attrib:
            node.set("style", re.sub(r"font-family:[^;]*;?", "", node.get("style", "")))
    # The page's style sheet sets the size; the view box keeps the proportions.
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", spoken)
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(text)
