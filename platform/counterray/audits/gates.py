"""Validity gates: is the generator fit to say anything about this attribute?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from counterray.audits.errors import AuditError
from counterray.audits.settings import GateConfig

LEAST_IMAGES = 100
"""Images on which a gate opens by its estimate alone."""

GateName = Literal["effectiveness", "composition", "off_target", "identity", "judge_auroc"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was measured of a generator.

    Attributes:
        gate: Which gate it is for.
        value: The number.
        low: Lower end of its 95 % interval; NaN where it has none.
        high: Upper end.
        images: How many it rests on; 0 where that is not said.
        judge: Label of the network that measured it, if any.
        note: What a reader must know.
    """

    gate: GateName
    value: float
    low: float = math.nan
    high: float = math.nan
    images: int = 0
    judge: str | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A gate and whether it is open.

    Attributes:
        name: Which one.
        reading: What was measured; ``None`` where nothing was.
        limit: What is asked for.
        better: On which side of the limit the value has to be.
        state: ``open``, ``closed`` or ``waived``.
        reason: Why it is closed, or why it was waived.
        remedy: What would open it.
    """

    name: GateName
    reading: Reading | None
    limit: float
    better: Literal["higher", "lower"]
    state: Literal["open", "closed", "waived"]
    reason: str = ""
    remedy: str = ""

    @property
    def value(self) -> float:
        """The number; NaN where nothing was measured."""
        return math.nan if self.reading is None else self.reading.value

    @property
    def judge(self) -> str | None:
        """Who measured."""
        return None if self.reading is None else self.reading.judge

    @property
    def note(self) -> str:
        """What a reader must know of the measurement."""
        return "" if self.reading is None else self.reading.note

    def as_json(self) -> dict[str, str | float | None]:
        """Plain values, with ``None`` for what was not measured."""
        return {
            "name": self.name,
            "value": _finite(self.value),
            "low": None if self.reading is None else _finite(self.reading.low),
            "high": None if self.reading is None else _finite(self.reading.high),
            "images": 0 if self.reading is None else self.reading.images,
            "limit": self.limit,
            "better": self.better,
            "state": self.state,
            "reason": self.reason,
            "remedy": self.remedy,
            "judge": self.judge,
            "note": self.note,
        }


@dataclass(frozen=True)
class _Kind:
    better: Literal["higher", "lower"]
    closed: str
    remedy: str


_KINDS: dict[GateName, _Kind] = {
    "effectiveness": _Kind(
        "higher",
        "an independent judge does not read the level that was asked for, so classifiers were not shown it",
        "train the generator longer, or guide it more strongly towards the attribute",
    ),
    "composition": _Kind(
        "lower",
        "the generator changes images when nothing is asked of it",
        "train its autoencoder longer, or sample it by inversion from the image's own noise",
    ),
    "off_target": _Kind(
        "lower",
        "the generator changes findings or attributes that should stay, so an effect may be theirs",
        "strengthen its disentanglement, hold the other attributes, or audit the direct effect",
    ),
    "identity": _Kind(
        "higher",
        "a counterfactual is another patient's image",
        "start the generation from less noise, or keep more of the image's own noise",
    ),
    "judge_auroc": _Kind(
        "higher",
        "the judge of the attribute is weak on real images, so its readings of generated ones mean little",
        "train the judge on more data, of patients that the generator has not seen",
    ),
}


def gates(readings: Sequence[Reading], config: GateConfig) -> list[Gate]:
    """Every gate, in a fixed order; one that was not measured is closed unless the settings waive it.

    What was measured has to keep the limit; with fewer than `LEAST_IMAGES` so has its whole interval.

    Raises:
        AuditError: If a gate was measured twice, or a waived name is no gate.
    """
    names = [reading.gate for reading in readings]
    twice = sorted({name for name in names if names.count(name) > 1})
    unknown = sorted(set(config.waived) - set(_KINDS))
    if twice:
        raise AuditError(f"Gate {twice[0]} was measured twice; give its worst reading.")
    if unknown:
        raise AuditError(f"gates.waived names {unknown[0]!r}, which is no gate; gates: {', '.join(_KINDS)}.")
    measured = {reading.gate: reading for reading in readings}
    return [_gate(name, kind, measured.get(name), config) for name, kind in _KINDS.items()]


def _gate(name: GateName, kind: _Kind, reading: Reading | None, config: GateConfig) -> Gate:
    limit = float(getattr(config, name))
    state: Literal["open", "closed", "waived"] = "open"
    reason = remedy = ""
    fault = _fault(name, kind, reading, limit)
    if name in config.waived:
        state, reason = "waived", config.waived[name]
        if reading is not None and fault:
            reason += f" (waived although {fault[0]})"
    elif fault:
        state, (reason, remedy) = "closed", fault
    return Gate(
        name=name,
        reading=reading,
        limit=limit,
        better=kind.better,
        state=state,
        reason=reason,
        remedy=remedy,
    )


def _fault(name: GateName, kind: _Kind, reading: Reading | None, limit: float) -> tuple[str, str] | None:
    """Why a gate is closed and what opens it; ``None`` where it is open."""
    if reading is None or math.isnan(reading.value):
        return "it was not measured", f"measure it, or give a reason in gates.waived.{name}"
    higher = kind.better == "higher"
    sign = "below" if higher else "above"
    bound = reading.low if higher else reading.high
    if (reading.value < limit) if higher else (reading.value > limit):
        return f"{reading.value:.3g} is {sign} gates.{name} = {limit:g}: {kind.closed}", kind.remedy
    few = 0 < reading.images < LEAST_IMAGES
    if few and ((bound < limit) if higher else (bound > limit)):
        reason = f"{reading.value:.3g} may be {bound:.3g}, {sign} gates.{name} = {limit:g}"
        return f"{reason}: too few images to say", f"audit more than {reading.images} images"
    return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
