"""Expected counterfactual accuracy: how often a decision survives a change of the attribute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterray.audits.clustered import ClusteredMeans
from counterray.audits.equivalence import rate_interval
from counterray.audits.errors import AuditError, Codes
from counterray.evaluation.intervals import Floats


@dataclass(frozen=True, kw_only=True)
class CounterfactualAccuracy:
    """ECA of T targets; 1 is best: no decision ever changes.

    Attributes:
        changed: ``[T]`` over interventions that change the level: the number to read.
        low: ``[T]`` lower ends of its 95 % intervals.
        high: ``[T]`` upper ends.
        paper: ``[T]`` over all K levels, the individual's own among them, as printed: a model that flips on
            every change still scores ``1 / K``.
    """

    changed: Floats
    low: Floats
    high: Floats
    paper: Floats


def expected_counterfactual_accuracy(
    decisions: NDArray[np.bool_], *, own: Codes, patients: Codes
) -> CounterfactualAccuracy:
    """ECA from decisions on counterfactuals.

    ``I(a, z) = 1[Ŷ(a) = Ŷ(own)]``; ``changed`` is its mean over individuals and levels ``a`` other than their
    own, ``paper = 1 / K + (K - 1) / K changed`` its mean over all levels.

    Args:
        decisions: ``[T, N, K]`` decision for each individual at each level, the own one generated too.
        own: ``[N]`` position of the observed level.
        patients: ``[N]`` as numbers, for the intervals.

    Raises:
        AuditError: If there is one level only.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, equations 7 and 8.
    """
    levels = decisions.shape[-1]
    if levels < 2:
        raise AuditError(f"ECA needs two or more levels; decisions are given at {levels}.")
    at_own = np.take_along_axis(decisions, own[None, :, None], axis=2)
    same = (decisions == at_own).sum(axis=-1) - 1  # the own level agrees with itself
    means = ClusteredMeans.of(same / (levels - 1), patients)
    low, high = rate_interval(means)
    return CounterfactualAccuracy(
        changed=means.mean, low=low, high=high, paper=1 / levels + (levels - 1) / levels * means.mean
    )
