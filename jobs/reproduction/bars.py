"""Numbers of several seeds, and the bars that they are held against: what every experiment's tables share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from counterray.evaluation.report import Block, Card, Cards, Cell, Section, Table, format_number

Better = Literal["higher", "lower"]

Measured = Mapping[str, Any]
"""A file that a measurement has left."""


@dataclass(frozen=True)
class Spread:
    """A number of several seeds.

    Attributes:
        values: One a seed; NaN where it could not be computed.
    """

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """Of numbers from JSON, which has ``None`` for NaN."""
        return cls(tuple(math.nan if value is None else float(value) for value in values))

    @property
    def mean(self) -> float:
        """NaN if any seed's is, so that no mean hides a seed that failed."""
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds (n - 1); NaN for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    @property
    def text(self) -> str:
        """For reading, such as ``0.81 ± 0.02``; empty where there is no mean."""
        if math.isnan(self.mean):
            return ""
        mean = format_number(self.mean)
        return mean if math.isnan(self.deviation) else f"{mean} ± {format_number(self.deviation)}"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "mean": _finite(self.mean),
            "deviation": _finite(self.deviation),
            "seeds": [_finite(value) for value in self.values],
        }


@dataclass(frozen=True)
class Bar:
    """A number against what it has to reach.

    Attributes:
        name: What is measured.
        spread: The number.
        bar: What its mean has to reach; a `Spread` where that was measured, too.
        better: On which side of the bar it has to be.
        note: What a reader must know beside it.
    """

    name: str
    spread: Spread
    bar: float | Spread
    better: Better
    note: str = ""

    @property
    def limit(self) -> float:
        """The bar as a number."""
        return self.bar.mean if isinstance(self.bar, Spread) else self.bar

    @property
    def margin(self) -> float:
        """How far it is on the right side of the bar; negative on the wrong one."""
        return (self.spread.mean - self.limit) * (1 if self.better == "higher" else -1)

    @property
    def met(self) -> bool | None:
        """Whether it is reached; ``None`` where it was not measured."""
        if math.isnan(self.margin):
            return None
        # A published bar is reached by equality; a baseline has to be beaten.
        return self.margin > 0 if isinstance(self.bar, Spread) else self.margin >= 0

    @property
    def verdict(self) -> str:
        """For reading."""
        if self.met is None:
            return "not measured"
        size = format_number(abs(self.margin))
        return f"met, by {size}" if self.met else f"missed by {size}"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            **self.spread.as_json(),
            "bar": _finite(self.limit),
            "better": self.better,
            "met": self.met,
            "margin": _finite(self.margin),
            "note": self.note,
        }


def bars_table(bars: Sequence[Bar]) -> Table:
    """Every bar, the number beside it, and by how much it is met or missed."""
    return Table(
        ["What", "Measured", "Bar", "Verdict", "Note"],
        [
            [
                bar.name,
                cell(bar.spread),
                ("≥ " if bar.better == "higher" else "below " if isinstance(bar.bar, Spread) else "≤ ")
                + format_number(bar.limit),
                bar.verdict,
                bar.note,
            ]
            for bar in bars
        ],
    )


def bars_section(bars: Sequence[Bar], *remarks: Block) -> Section:
    """How many bars are met, each of them, and what else is to be said first on the page."""
    met = sum(bool(bar.met) for bar in bars)
    cards = [Card("Bars met", f"{met} of {len(bars)}")] if bars else []
    return Section(
        "Bars",
        [Cards(cards), bars_table(bars), *remarks],
        "Means over seeds against what was set out to be reached.",
    )


def cell(spread: Spread) -> Cell:
    """A number of several seeds in a table; nothing where a seed lacks it."""
    return spread.text or None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
