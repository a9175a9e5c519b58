"""`Metric`: one number of an evaluation, with what is needed to trust it; and the judges behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Direction = Literal["higher", "lower", "none"]
"""Which direction of a metric is better."""


class UnscorableError(ValueError):
    """The bundle, judge or dataset that was chosen does not allow this evaluation; the message says why.

    Whoever chose it can choose another. Any other error of an evaluation is a defect of the code.
    """


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number with its uncertainty and its origin.

    Attributes:
        name: What is measured, in snake case, such as ``ground_truth_error``.
        value: The number; NaN where it could not be computed, and then ``note`` says why.
        low: Lower end of the 95 % interval; NaN where there is none.
        high: Upper end of the 95 % interval; NaN where there is none.
        n: Number of images that the value rests on.
        judge: Name and short checksum of the network that scored, or ``None`` where none did. Numbers of
            different judges are not comparable.
        direction: Which direction is better.
        subset: What the number is restricted to, such as one finding; empty for all.
        unit: Unit of ``value``, such as ``dB``; empty for a plain ratio.
        note: What a reader must know beside the number.
    """

    name: str
    value: float
    n: int
    direction: Direction
    low: float = math.nan
    high: float = math.nan
    judge: str | None = None
    subset: str = ""
    unit: str = ""
    note: str = ""

    @property
    def key(self) -> str:
        """Name and subset as one word, such as ``auroc[edema]``."""
        return f"{self.name}[{self.subset}]" if self.subset else self.name

    def as_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite becomes ``None``, since JSON has no word for it."""
        return {
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "n": self.n,
            "judge": self.judge,
            "direction": self.direction,
            "unit": self.unit,
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A frozen network that scores images.

    Attributes:
        name: Its name, such as ``classifier-b``.
        checksum: Checksum of its bundle.
        predict: Images ``[B, 1, H, W]`` in [-1, 1] to ``[B, ...]``: probabilities ``[B, K]`` of a
            classifier, probabilities ``[B, K, H, W]`` of a segmentor, features ``[B, D]`` of an encoder.
        outputs: What the K outputs are called; empty for an encoder.
    """

    name: str
    checksum: str
    predict: Callable[[Tensor], Tensor] = field(repr=False)
    outputs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name and short checksum, as every number of this judge carries it."""
        return f"{self.name}:{self.checksum[:8]}"

    @torch.no_grad()
    def scores(self, image: Tensor, *, batch_size: int = 64) -> Tensor:
        """The answers to all images, ``[B, ...]``, computed ``batch_size`` images at a time."""
        return torch.cat([self.predict(part) for part in image.split(batch_size)])  # type: ignore[no-untyped-call]

    def columns(self, names: tuple[str, ...]) -> list[int]:
        """Positions of ``names`` among the outputs.

        Raises:
            UnscorableError: If the judge has no such output.
        """
        missing = [name for name in names if name not in self.outputs]
        if missing:
            raise UnscorableError(
                f"Judge {self.label} has no output {', '.join(missing)}. It has: {', '.join(self.outputs)}."
            )
        return [self.outputs.index(name) for name in names]


def as_json(metrics: list[Metric]) -> dict[str, dict[str, Any]]:
    """Metrics by key, as ``metrics.json`` and ``--json`` hold them.

    Raises:
        ValueError: If two metrics have the same key, since one would hide the other.
    """
    keys = [metric.key for metric in metrics]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"Two metrics have the same key: {', '.join(twice)}. Give each its own subset.")
    return {metric.key: metric.as_json() for metric in metrics}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
