"""CIT-LR, the published conditional independence test, as shipped and as meant; and its orthogonal form.

With ``f(a, z) = E[Ŷ | A = a, Z = z]`` and ``g(z) = E[Ŷ | Z = z]``, a classifier is counterfactually invariant
if and only if ``E[Ŷ f(A, Z)] = E[Ŷ g(Z)]`` (Theorem 4.2), and
``δ = E[Ŷ f] - E[Ŷ g] = E[Var(f(A, Z) | Z)] >= 0``. It needs a Z that is independent of A and blocks all other
paths, and it knows no effect of any single individual.

Letters: T = classifiers, N = rows, D = features of Z, K = levels of A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import ttest_ind, ttest_rel
from torch import Tensor

from counterray.audits.clustered import ClusteredMeans
from counterray.audits.errors import (
    MINIMUM_PATIENTS,
    AuditError,
    Codes,
    checked_groups,
    checked_scores,
    encoded_patients,
)
from counterray.audits.group_performance import calibration_error
from counterray.audits.nuisance import NuisanceConfig, fit_networks
from counterray.config import Config
from counterray.evaluation.intervals import Floats


class CitLrConfig(Config):
    """Which reading of the method; the defaults are the corrected one."""

    splitting: Literal["cross_fit", "split"] = "cross_fit"
    """``split`` fits f and g on the learning rows, the classifier's own training rows in the published code;
    ``cross_fit`` fits them on folds of the audited rows, each row scored by networks that have not seen its
    patient."""
    test: Literal["paired", "two_sample"] = "paired"
    """The paper says both; its code pairs."""
    alternative: Literal["greater", "two_sided"] = "greater"
    """δ cannot be negative, so ``greater``; the published code asks for two sides."""
    nuisance: NuisanceConfig = NuisanceConfig(
        hidden=(16,), learning_rate=1e-2, weight_decay=1e-2, epochs=300, patience=20
    )
    """f and g."""
    f: Literal["joint", "separate"] = "joint"
    """``separate``: one network for each level of A, each with its share of the rows, as published; f is then
    fitted worse than g and δ comes out too small. ``joint``: one network of Z, A and their products."""
    folds: int = 5
    """Folds of cross-fitting, divided by patient."""
    seed: int = 0
    """Of weights and folds; the published code has none, and p from 1e-4 to .98 for one model."""

    @classmethod
    def as_shipped(cls, *, seed: int = 0) -> CitLrConfig:
        """What the published code does: one split, paired, two-sided, 1000 epochs, nothing held out."""
        return cls(
            splitting="split",
            alternative="two_sided",
            f="separate",
            nuisance=NuisanceConfig(),
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class CitLr:
    """The test of T classifiers; every array is ``[T]``.

    Attributes:
        delta: ``mean(Ŷ f - Ŷ g)``, the plug-in estimate.
        p_value: Of ``delta = 0`` by the chosen t-test; NaN as the published code has it where all differences
            are 0, such as for a classifier that says 0 to all.
        p_two_sample: The same differences by the two-sample test.
        orthogonal_delta: ``mean((Ŷ - g)² - (Ŷ - f)²)``, whose error is of second order in those of f and g.
        p_orthogonal: One-sided, patients as units; 1 where nothing varies.
        effect: ``orthogonal_delta / (π (1 - π))``, an estimate of the flip rate ``1 - ECA`` where Ŷ is a
            decision; NaN unless A has two levels.
        brier_f: Mean squared error of f on the rows scored; the calibration of f is the next.
        calibration_f: Expected calibration error of f.
        rows: Rows that the test rests on.
    """

    delta: Floats
    p_value: Floats
    p_two_sample: Floats
    orthogonal_delta: Floats
    p_orthogonal: Floats
    effect: Floats
    brier_f: Floats
    calibration_f: Floats
    rows: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a data set and what T classifiers say of them.

    Attributes:
        predictions: ``[T, N]`` decisions 0 or 1, or probabilities.
        groups: ``[N]`` position of each row's level.
        representation: ``[N, D]`` Z.
        patients: The patient of each row.
    """

    predictions: Floats
    groups: Codes
    representation: Floats
    patients: Sequence[str]


def cit_lr(
    audited: Rows,
    config: CitLrConfig,
    *,
    attribute: str,
    levels: Sequence[str],
    learning: Rows | None = None,
    minimum_patients: int = MINIMUM_PATIENTS,
) -> CitLr:
    """Tests T classifiers of a pool on the same rows.

    Args:
        audited: Rows D2, on which the test is made.
        config: The reading.
        attribute: Name of A.
        levels: Names of its K levels.
        learning: Rows D1, on which f and g are fitted where ``config.splitting`` is ``split``.
        minimum_patients: Patients that each level needs, in either set.

    Raises:
        AuditError: If predictions or levels are unusable, or ``learning`` does not go with the splitting.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, Theorem 4.2 and Algorithm 1. The orthogonal
        form is the difference of two mean squared errors of Williamson et al., 2021,
        https://doi.org/10.1111/biom.13392.
    """
    patients = _checked(audited, attribute, levels, minimum_patients)
    if (learning is not None) != (config.splitting == "split"):
        raise AuditError(
            f"splitting = {config.splitting!r} "
            + ("needs learning rows." if learning is None else "takes no learning rows: drop them.")
        )
    if learning is not None:
        _checked(learning, attribute, levels, minimum_patients)
        f, g = _fitted(learning, audited, len(levels), config, seed=config.seed)
    else:
        f, g = _cross_fitted(audited, patients, len(levels), config)
    return _tested(audited, f, g, patients, config, levels=len(levels))


def _checked(rows: Rows, attribute: str, levels: Sequence[str], minimum_patients: int) -> Codes:
    size = len(rows.patients)
    checked_scores("predictions", rows.predictions, (len(rows.predictions), size))
    if len(rows.representation) != size or not np.isfinite(rows.representation).all():
        raise AuditError(
            f"representation has shape {rows.representation.shape} for {size} rows, and must be finite."
        )
    patients = encoded_patients(rows.patients, size=size)
    checked_groups(attribute, rows.groups, levels, patients, minimum_patients=minimum_patients)
    return patients


def _fitted(
    learning: Rows, scored: Rows, levels: int, config: CitLrConfig, *, seed: int
) -> tuple[Floats, Floats]:
    """``f(A, Z)`` and ``g(Z)``, each ``[T, N]``, on the scored rows."""
    inputs, outputs = _tensor(learning.representation), _tensor(scored.representation)
    targets = _tensor(learning.predictions)
    g = fit_networks(inputs, targets, config.nuisance, seed=seed).probabilities(outputs)
    if config.f == "joint":
        networks = fit_networks(_joint(learning, levels), targets, config.nuisance, seed=seed + 1)
        return networks.probabilities(_joint(scored, levels)).double().numpy(), g.double().numpy()
    f = torch.empty_like(g)
    for level in range(levels):
        here = torch.from_numpy(learning.groups == level)
        there = torch.from_numpy(scored.groups == level)
        networks = fit_networks(inputs[here], targets[:, here], config.nuisance, seed=seed + 1 + level)
        f[:, there] = networks.probabilities(outputs[there])
    return f.double().numpy(), g.double().numpy()


def _joint(rows: Rows, levels: int) -> Tensor:
    """``[N, D + (K - 1) (1 + D)]``: Z, then for each level but one its contrast and its products with Z.

    Contrasts are centred, so that a network that has learnt nothing of A is the network of Z alone.
    """
    contrasts = np.eye(levels)[rows.groups][:, 1:] - 1 / levels
    products = contrasts[:, :, None] * rows.representation[:, None, :]
    return _tensor(
        np.concatenate([rows.representation, contrasts, products.reshape(len(contrasts), -1)], axis=1)
    )


def _cross_fitted(rows: Rows, patients: Codes, levels: int, config: CitLrConfig) -> tuple[Floats, Floats]:
    if config.folds < 2:
        raise AuditError(f"folds = {config.folds}; cross-fitting needs 2 or more.")
    order = np.random.default_rng(config.seed).permutation(int(patients.max()) + 1)
    fold = order[patients] % config.folds
    f, g = np.empty_like(rows.predictions), np.empty_like(rows.predictions)
    for number in range(config.folds):
        inside, outside = fold == number, fold != number
        f[:, inside], g[:, inside] = _fitted(
            _part(rows, outside),
            _part(rows, inside),
            levels,
            config,
            seed=config.seed + number * (levels + 1),
        )
    return f, g


def _part(rows: Rows, chosen: ArrayLike) -> Rows:
    where = np.flatnonzero(chosen)
    return Rows(
        predictions=rows.predictions[:, where],
        groups=rows.groups[where],
        representation=rows.representation[where],
        patients=[rows.patients[int(row)] for row in where],
    )


def _tested(rows: Rows, f: Floats, g: Floats, patients: Codes, config: CitLrConfig, *, levels: int) -> CitLr:
    said = rows.predictions
    left, right = said * f, said * g
    constant = np.ptp(said, axis=1) == 0
    # Of a constant there is nothing to explain, whatever the networks make of it.
    gain = np.where(constant[:, None], 0.0, (said - g) ** 2 - (said - f) ** 2)
    means = ClusteredMeans.of(gain, patients)
    share = float((rows.groups == 1).mean())
    return CitLr(
        delta=(left - right).mean(axis=1),
        p_value=_t_test(left, right, config.test, config),
        p_two_sample=_t_test(left, right, "two_sample", config),
        orthogonal_delta=means.mean,
        p_orthogonal=means.p_greater(0.0),
        effect=means.mean / (share * (1 - share)) if levels == 2 else np.full(len(said), math.nan),
        brier_f=((said - f) ** 2).mean(axis=1),
        calibration_f=np.array([calibration_error(y, p) for y, p in zip(said, f, strict=True)]),
        rows=said.shape[1],
    )


def _t_test(left: Floats, right: Floats, test: str, config: CitLrConfig) -> Floats:
    alternative = config.alternative.replace("_", "-")
    p = np.full(len(left), math.nan)
    varies = np.ptp(left - right, axis=1) > 0
    if varies.any():
        tested = ttest_rel if test == "paired" else ttest_ind
        p[varies] = tested(left[varies], right[varies], axis=1, alternative=alternative).pvalue
    return p


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
