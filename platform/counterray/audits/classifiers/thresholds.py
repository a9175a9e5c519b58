"""From which score a finding is called: a given one, Youden's, or that of a target sensitivity."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from counterray.audits.errors import AuditError, checked_labels, checked_scores
from counterray.config import Config
from counterray.evaluation.intervals import Floats


class ThresholdConfig(Config):
    """Where to cut a classifier's probabilities."""

    method: Literal["given", "youden", "sensitivity"] = "given"
    """``given``: as ``value`` and ``values`` say. ``youden``: the largest sensitivity + specificity - 1 on
    validation studies. ``sensitivity``: the highest cut there that reaches ``sensitivity``."""
    value: float = Field(default=0.5, gt=0, lt=1)
    """Given threshold of findings that ``values`` does not name [probability]."""
    values: dict[str, float] = Field(default_factory=dict)
    """Finding to given threshold [probability]."""
    sensitivity: float = Field(default=0.9, gt=0, le=1)
    """Least share of the validation studies with a finding that is called."""


def given_threshold(config: ThresholdConfig, finding: str) -> float:
    """The threshold that the settings give."""
    return config.values.get(finding, config.value)


def chosen_threshold(name: str, scores: ArrayLike, labels: ArrayLike, config: ThresholdConfig) -> float:
    """The threshold by validation studies: half-way between two neighbouring scores.

    Args:
        name: Of classifier and finding, for messages.
        scores: ``[N]`` probabilities of validation studies.
        labels: ``[N]`` 1, 0 or NaN for unknown; those are left out.
        config: ``method`` is ``youden`` or ``sensitivity``.

    Returns:
        A probability in (0, 1); of several that do equally well the highest.

    Raises:
        AuditError: If scores are no probabilities, a class is missing, all scores are equal, or the target
            sensitivity takes calling every image.

    Reference: Youden, 1950, https://doi.org/10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3.
    """
    values = np.asarray(scores, dtype=np.float64)
    values = checked_scores(f"{name}: validation scores", values, values.shape)
    truth = checked_labels(f"{name}: validation labels", labels, values.shape)
    known = ~np.isnan(truth)
    values, positive = values[known], truth[known] == 1
    if positive.all() or not positive.any():
        raise AuditError(
            f"{name}: of {len(values)} validation studies with a known label {int(positive.sum())} are "
            f"positive; threshold.method = {config.method} needs both kinds. Give threshold.values instead."
        )
    cuts = _cuts(values)
    if not len(cuts):
        raise AuditError(
            f"{name}: all validation studies score {values[0]:g}, so no threshold divides them. Look at the "
            "classifier's preprocessing and output."
        )
    called = values[:, None] >= cuts
    sensitivity = called[positive].mean(axis=0)
    if config.method == "youden":
        youden = sensitivity - called[~positive].mean(axis=0)
        return float(cuts[np.flatnonzero(youden >= youden.max() - 1e-12)[-1]])
    reached = np.flatnonzero(sensitivity >= config.sensitivity - 1e-12)
    if not len(reached):
        raise AuditError(
            f"{name}: a sensitivity of {config.sensitivity:g} on validation studies takes calling all of "
            "them. Lower threshold.sensitivity, or give threshold.values."
        )
    return float(cuts[reached[-1]])


def _cuts(scores: Floats) -> Floats:
    """Half-way between neighbouring different scores, ascending."""
    distinct = np.unique(scores)
    halves = (distinct[1:] + distinct[:-1]) / 2
    # Of two neighbouring floats the half-way point is one of them: the upper one divides them still.
    return np.asarray(np.where(halves > distinct[:-1], halves, distinct[1:]))
