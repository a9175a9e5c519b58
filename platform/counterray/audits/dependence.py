"""Does the attribute move scores more than null interventions do? Three tests of it, and one family."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from counterray.audits.clustered import ClusteredMeans, patient_weights, resampled_ratios
from counterray.audits.effects import Effects
from counterray.audits.errors import AuditError, Codes
from counterray.audits.multiplicity import corrected
from counterray.audits.permutation import column_permutation, role_permutation
from counterray.audits.scores import PlaceboUnit
from counterray.audits.settings import AuditConfig
from counterray.evaluation.intervals import Floats


def check_placebo(repeats: int, unit: PlaceboUnit, config: AuditConfig, *, family: int = 1) -> None:
    """Checks that null generators are enough for the level, and the chosen test valid with them.

    Args:
        repeats: R.
        unit: What the null interventions are.
        config: Level, test and correction.
        family: Tests that are corrected together.

    Raises:
        AuditError: If they are not.
    """
    if unit == "individual":
        return
    tests = 1 if config.correction == "none" else family
    needed = math.ceil(tests / config.alpha) - 1
    if repeats < needed:
        raise AuditError(
            f"placebo_unit = 'generator' with {repeats} null generators: the smallest p-value is "
            f"1 / {repeats + 1}, which corrected over {tests} tests is above alpha = {config.alpha:g}. Train "
            f"{needed} or more, audit fewer targets at a time, or take null interventions of the generator "
            "itself (placebo_unit = 'individual')."
        )
    if config.test != "permutation":
        raise AuditError(
            f"test = {config.test!r} takes individuals as exchangeable; with placebo_unit = 'generator' only "
            "test = 'permutation' is valid."
        )


@dataclass(frozen=True)
class Dependence:
    """p-values ``[T, Q]`` of "the attribute moves scores no more than a null intervention".

    Attributes:
        permutation: Of roles permuted within patients, or of whole generators; see `role_permutation`.
        bootstrap: Share of patient resamples whose excess of ``|τ|`` is not positive; 1 where nothing moves.
        delta: One-sided t-test of ``E τ² > E τ_placebo²``; δ cannot be negative, so one side is enough.
            This and the bootstrap take individuals as independent and are NaN for null generators.
        decisive: The one that the settings choose.
        corrected: It, corrected over all targets and pairs.
    """

    permutation: Floats
    bootstrap: Floats
    delta: Floats
    decisive: Floats
    corrected: Floats

    @classmethod
    def of(
        cls,
        effects: Effects,
        patients: Codes,
        config: AuditConfig,
        *,
        placebo_unit: PlaceboUnit,
    ) -> Dependence:
        """All tests, with the same draws for every target and pair.

        Args:
            effects: T targets, Q pairs.
            patients: ``[N]``.
            config: Tests and level.
            placebo_unit: What is exchangeable.
        """
        shape = effects.effect.shape[:2]
        family = shape[0] * shape[1]
        # Fewer permutations could never pass Holm's first step over so many tests.
        draws = max(config.permutations, math.ceil(2 * family / config.alpha))
        changes = effects.changes()
        bootstrap, delta = np.full(shape, math.nan), np.full(shape, math.nan)
        if placebo_unit == "generator":
            permutation = column_permutation(changes)
        else:
            permutation = role_permutation(changes, patients, permutations=draws, seed=config.seed)
            resamples = draws if config.test == "bootstrap" else config.resamples
            for pair, rows in enumerate(effects.concerned):
                codes = np.unique(patients[rows], return_inverse=True)[1]
                square = ClusteredMeans.of(effects.excess_square[:, pair, rows], codes)
                delta[:, pair] = square.p_greater(0.0)
                excess = effects.excess[:, pair, rows]
                bootstrap[:, pair] = _bootstrap_p(excess, codes, resamples=resamples, seed=config.seed)
        chosen = {"permutation": permutation, "bootstrap": bootstrap, "delta": delta}[config.test]
        return cls(
            permutation=permutation,
            bootstrap=bootstrap,
            delta=delta,
            decisive=chosen,
            corrected=corrected(chosen.ravel(), config.correction).reshape(shape),
        )


def _bootstrap_p(excess: Floats, patients: Codes, *, resamples: int, seed: int) -> Floats:
    # Not the seed of the intervals, whose draws are over all individuals.
    weights = patient_weights(int(patients.max()) + 1, resamples=resamples, seed=seed + 1)
    draws = resampled_ratios(weights, excess, np.ones((1, len(patients))), patients)
    p: Floats = (1 + (draws <= 0).sum(axis=0)) / (len(draws) + 1)
    return p
