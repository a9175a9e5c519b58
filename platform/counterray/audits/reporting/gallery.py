"""The flip gallery: the patients whom the attribute moves most, by a code that only the site can undo."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from counterray.audits.errors import AuditError
from counterray.audits.scores import CounterfactualScores, Target
from counterray.evaluation.intervals import Floats
from counterray.evaluation.pictures import EFFECT_RANGE, effect_gradient, effect_picture, grey_picture
from counterray.evaluation.report import ImageGrid, ImageRow, Legend

MINIMUM_SALT = 16
"""Bytes of the salt: identifiers are few and regular, so a short one could be tried out with them."""


@dataclass(frozen=True)
class Pick:
    """An individual to show: positions of target, individual and of the level that it is changed to."""

    target: int
    individual: int
    level: int


def patient_code(patient: str, *, salt: bytes) -> str:
    """A code of ten characters for a patient: the same under the same salt, and without it nobody's.

    Raises:
        AuditError: If the salt is too short to keep the code from being undone by trying identifiers.
    """
    if len(salt) < MINIMUM_SALT:
        raise AuditError(
            f"The salt of patient codes has {len(salt)} bytes; {MINIMUM_SALT} or more are needed. Draw one "
            "with secrets.token_bytes and keep it at the site."
        )
    return hashlib.blake2b(patient.encode(), key=salt[:64], digest_size=5).hexdigest()


def most_affected(scores: CounterfactualScores, *, count: int, salt: bytes) -> list[Pick]:
    """The individuals that change most from their own level to another, a patient once, the largest first.

    Decisions that flip come before scores that only move. Of either kind the picks are spread: each is of the
    classifier that has fewest so far, of these of the finding that has fewest, and of these the largest
    change; ties go by the patient's code.

    Args:
        scores: Checked scores.
        count: How many at most.
        salt: Of the codes.
    """
    own = np.take_along_axis(scores.intervened, scores.own[None, :, None], axis=2)
    cut = np.array([target.threshold for target in scores.targets])[:, None, None]
    flips = (scores.intervened >= cut) != (own >= cut)
    size = np.abs(scores.intervened - own)
    codes = np.array([patient_code(patient, salt=salt) for patient in scores.patients])
    waiting = [_ranked(t, flips[t], size[t], codes, count=count) for t in range(len(scores.targets))]
    chosen: list[_Change] = []
    taken: Counter[tuple[str, str]] = Counter()

    def turn(change: _Change) -> tuple[bool, int, int, float, str]:
        target = scores.targets[change.pick.target]
        turns = taken["classifier", target.classifier], taken["finding", target.finding]
        return (not change.flips, *turns, -change.size, change.code)

    while len(chosen) < count and any(waiting):
        change = min((changes[0] for changes in waiting if changes), key=turn)
        chosen.append(change)
        target = scores.targets[change.pick.target]
        taken.update([("classifier", target.classifier), ("finding", target.finding)])
        waiting = [[each for each in changes if each.code != change.code] for changes in waiting]
    return [each.pick for each in sorted(chosen, key=lambda each: each.rank)]


@dataclass(frozen=True)
class _Change:
    """A pick, the patient's code, and how large the change is."""

    pick: Pick
    code: str
    flips: bool
    size: float

    @property
    def rank(self) -> tuple[bool, float, str]:
        """Sorts flips first, then by size, then by code."""
        return (not self.flips, -self.size, self.code)


def _ranked(
    target: int, flips: NDArray[np.bool_], size: Floats, codes: NDArray[np.str_], *, count: int
) -> list[_Change]:
    """The largest change of each patient, the largest first; of as many patients as could be shown."""
    rows, levels = np.nonzero(size > 0)
    order = np.lexsort((codes[rows], -size[rows, levels], ~flips[rows, levels]))
    found: dict[str, _Change] = {}
    for row, level in zip(rows[order].tolist(), levels[order].tolist(), strict=True):
        if len(found) == count:
            break
        change = _Change(
            Pick(target, row, level), str(codes[row]), bool(flips[row, level]), float(size[row, level])
        )
        found.setdefault(change.code, change)
    return list(found.values())


@dataclass(frozen=True, kw_only=True)
class Example:
    """A patient's images and what one target says of them; it holds no identifier.

    Attributes:
        patient: From `patient_code`.
        target: Classifier, finding and threshold.
        own: The observed level.
        other: The level it is changed to.
        label: 1 with the finding, 0 without, NaN where unknown.
        observed: The image, ``[1, H, W]`` in [-1, 1].
        repainted: The generated image at the own level, which effects are counted from.
        counterfactual: The generated image at the other level.
        scores: Of the three images in this order [probability].
    """

    patient: str
    target: Target
    own: str
    other: str
    label: float
    observed: Tensor
    repainted: Tensor
    counterfactual: Tensor
    scores: tuple[float, float, float]

    @classmethod
    def of(
        cls,
        scores: CounterfactualScores,
        pick: Pick,
        *,
        salt: bytes,
        observed: Tensor,
        repainted: Tensor,
        counterfactual: Tensor,
    ) -> Example:
        """The example that a pick names, with its images ``[1, H, W]`` in [-1, 1]."""
        own = int(scores.own[pick.individual])
        told = scores.intervened[pick.target, pick.individual]
        return cls(
            patient=patient_code(scores.patients[pick.individual], salt=salt),
            target=scores.targets[pick.target],
            own=scores.levels[own],
            other=scores.levels[pick.level],
            label=float(scores.labels[pick.target, pick.individual]),
            observed=observed,
            repainted=repainted,
            counterfactual=counterfactual,
            scores=(
                float(scores.observed[pick.target, pick.individual]),
                float(told[own]),
                float(told[pick.level]),
            ),
        )

    @property
    def outcome(self) -> str:
        """What becomes of the decision, and which error that is."""
        before, after = (score >= self.target.threshold for score in self.scores[1:])
        if before == after:
            return "the decision stays"
        if math.isnan(self.label):
            return f"{'called' if after else 'not called'} only as {self.other}; the truth is not known"
        ill = self.label == 1
        if after:
            return f"{'found' if ill else 'false alarm'} only as {self.other}"
        return f"{'missed as ' + self.other if ill else 'false alarm only as ' + self.own}"

    @property
    def caption(self) -> str:
        """All of it in a line."""
        truth = {1.0: "with the finding", 0.0: "without the finding"}.get(self.label, "truth unknown")
        observed, repainted, changed = (f"{score:.2f}" for score in self.scores)
        return (
            f"Patient {self.patient}, {self.own}, {truth}. {self.target.name}: {observed} as observed, "
            f"{repainted} repainted as {self.own}, {changed} as {self.other}; threshold "
            f"{self.target.threshold:.2g}: {self.outcome}."
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the images."""
        observed, repainted, changed = self.scores
        return {
            "patient_code": self.patient,
            "classifier": self.target.classifier,
            "finding": self.target.finding,
            "threshold": self.target.threshold,
            "own": self.own,
            "other": self.other,
            "label": None if math.isnan(self.label) else int(self.label),
            "scores": {"observed": observed, "own": repainted, "other": changed},
            "outcome": self.outcome,
        }


def gallery(examples: Sequence[Example]) -> ImageGrid:
    """The examples' pictures, a row each."""
    end = f"{EFFECT_RANGE / 2:.0%}"
    return ImageGrid(
        ["Observed", "Repainted unchanged", "Counterfactual", "Difference"],
        [
            ImageRow(
                example.caption,
                [
                    grey_picture(example.observed),
                    grey_picture(example.repainted),
                    grey_picture(example.counterfactual),
                    effect_picture(example.counterfactual, example.repainted),
                ],
            )
            for example in examples
        ],
        caption="Chosen because the decision or the score changes most: they are the extreme, not the "
        "typical patient. Codes are salted hashes that only the site can lead back to patients.",
        legend=Legend(
            "Difference: counterfactual − repainted",
            effect_gradient(),
            f"−{end} darker",
            "unchanged",
            f"brighter +{end}",
        ),
    )
