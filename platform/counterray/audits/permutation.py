"""Permutation tests: is the real intervention one more null intervention?

Letters: C = columns (targets × pairs), N = individuals, P = patients, R = null interventions,
B = permutations.
"""

from __future__ import annotations

import numpy as np

from counterray.audits.clustered import patient_sums
from counterray.audits.errors import Codes
from counterray.evaluation.intervals import Floats

_TIE = 1e-9
"""Difference of standardised statistics below which they count as equal: rounding, not evidence."""

_AT_ONCE = 2048
"""Permutations held in memory at a time."""


def role_permutation(changes: Floats, patients: Codes, *, permutations: int, seed: int) -> Floats:
    """p-values ``[...]`` of whether the real intervention moves scores otherwise than null interventions do.

    Under the null a patient's real intervention is one more null intervention, so any of the ``R + 1``
    candidates could have been the real one; each permutation draws, for every patient, which candidate plays
    it, for all images of the patient alike. With ``v_pr`` the sum over patient p's individuals of candidate
    r, a contrast is ``Σ_p (v_p0 - mean_{r>0} v_pr)``. There are two, each over its standard deviation under
    permutation: of ``|changes|``, large where scores move more, in whatever direction; and of ``changes``,
    whose absolute value is large where they move together. The statistic is the larger of the two, so that
    neither effects that cancel nor small common ones under a noisy generator are missed. For R = 1 permuting
    roles is flipping signs within patients. ``p = (1 + #{T_b >= T}) / (B + 1)`` is never below the nominal
    rate of errors, and 1 where nothing moves at all.

    Args:
        changes: ``[..., N, R + 1]`` changes of the score away from the own level, the real one's first,
            with the sign of the direction of the pair; 0 for individuals left out.
        patients: ``[N]``.
        permutations: B.
        seed: Of the draws.

    Reference: Phipson and Smyth, 2010, https://doi.org/10.2202/1544-6115.1585 (the 1 + in p); Hemerik and
        Goeman, 2018, https://doi.org/10.1007/s11749-017-0571-1 (random permutations).
    """
    shape, roles = changes.shape[:-2], changes.shape[-1]
    by_role = np.moveaxis(changes, -1, 0).reshape(roles, -1, changes.shape[-2])
    size, together = (_contrasts(part, patients) for part in (np.abs(by_role), by_role))
    observed = _larger(size[0].sum(axis=-1), together[0].sum(axis=-1))
    random = np.random.default_rng(seed)
    reached = np.zeros(observed.shape)
    for start in range(0, permutations, _AT_ONCE):
        count = min(_AT_ONCE, permutations - start)
        drawn = random.integers(0, roles, size=(count, size.shape[-1]))
        masks = [(drawn == role).astype(np.float64) for role in range(roles)]
        permuted = _larger(*(sum(m @ part[k].T for k, m in enumerate(masks)) for part in (size, together)))
        reached += (permuted >= observed - _TIE).sum(axis=0)
    return np.asarray((1 + reached) / (permutations + 1)).reshape(shape)


def column_permutation(changes: Floats) -> Floats:
    """As `role_permutation` where whole generators are exchangeable, and not single individuals.

    Every null generator makes errors that its individuals share, so roles change for all individuals at
    once: the real generator is ranked among the R null ones by the mean of ``|changes|``. Signs do not count,
    since the direction of an intervention on shuffled levels is not the pair's. The smallest p-value is
    ``1 / (R + 1)``.

    Args:
        changes: ``[..., N, R + 1]``, the real generator's first.
    """
    shape = changes.shape[:-2]
    flat = changes.reshape(-1, *changes.shape[-2:])
    statistic = _standardised(np.abs(flat).sum(axis=1).T)  # [R + 1, C]
    reached = (statistic[1:] >= statistic[0] - _TIE).sum(axis=0)
    return np.asarray((1 + reached) / len(statistic)).reshape(shape)


def _contrasts(candidates: Floats, patients: Codes) -> Floats:
    """What each patient adds if a candidate plays the real one, ``[R + 1, C, P]``, over the deviation."""
    sums = patient_sums(candidates, patients)
    roles = len(sums)
    contrast = (roles * sums - sums.sum(axis=0)) / (roles - 1)
    # A patient's contrasts sum to zero over roles, so their mean square is their variance.
    deviation = np.sqrt((contrast**2).mean(axis=0).sum(axis=-1))
    # What is left of equal candidates after rounding is no deviation.
    still = deviation <= 1e-12 * np.abs(sums).max(axis=(0, 2))
    scaled: Floats = np.where(still[:, None], 0.0, contrast / np.where(still, 1.0, deviation)[:, None])
    return scaled


def _standardised(values: Floats) -> Floats:
    """Over the first axis; 0 where nothing varies."""
    deviation = values.std(axis=0)
    still = deviation <= 1e-12 * np.abs(values).max(axis=0)
    scaled: Floats = np.where(still, 0.0, (values - values.mean(axis=0)) / np.where(still, 1.0, deviation))
    return scaled


def _larger(size: Floats, together: Floats) -> Floats:
    larger: Floats = np.maximum(size, np.abs(together))
    return larger
