"""Permutation tests: by hand, against SciPy, and where everything ties."""

import numpy as np
import pytest
from scipy.stats import permutation_test

from counterray.audits.permutation import column_permutation, role_permutation


def test_one_null_intervention_is_the_sign_flip_test():
    random = np.random.default_rng(3)
    # All changes go up, so that sizes and signed changes make one contrast.
    real, null = np.abs(random.normal(0.5, 1, 60)), np.abs(random.normal(0, 1, 60))
    found = role_permutation(np.stack([real, null], axis=-1), np.arange(60), permutations=20_000, seed=0)
    other = permutation_test(
        (real, null),
        lambda a, b, axis: np.abs((a - b).mean(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    assert found == pytest.approx(other.pvalue, abs=0.01)


def test_all_permutations_of_two_patients_by_hand():
    # Sizes contrast by 2 and 1, signed changes by 2 and -1, each over sqrt(5). As observed, with the first,
    # the second or both patients' roles changed: sizes sum to 3, -1, 1, -3 and signed changes, in absolute
    # value, to 1, 3, 3, 1. The larger is 3, 3, 3, 1: three of four are as large as what was observed.
    changes = np.array([[3.0, 1.0], [-2.0, -1.0]])
    found = role_permutation(changes, np.arange(2), permutations=4000, seed=0)
    assert found == pytest.approx(0.75, abs=0.03)


def test_effects_that_cancel_are_found_by_their_size():
    random = np.random.default_rng(0)
    real = 0.2 * random.choice([-1, 1], 100)
    null = random.normal(0, 0.05, 100)
    found = role_permutation(np.stack([real, null], axis=-1), np.arange(100), permutations=999, seed=0)
    assert found == 0.001


def test_a_small_common_shift_is_found_under_a_noisy_generator():
    random = np.random.default_rng(0)
    p_values = []
    for _ in range(50):
        own, real, null = random.normal(0, 0.1, (3, 500))
        changes = np.stack([real + 0.05 - own, null - own], axis=-1)
        p_values.append(role_permutation(changes, np.arange(500), permutations=199, seed=0))
    assert np.mean(np.array(p_values) <= 0.05) >= 0.9


def test_images_of_a_patient_change_roles_together():
    # One patient of many images can be flipped only as a whole: half of all permutations tie with it.
    changes = np.tile([[1.0, 0.0]], (50, 1))
    found = role_permutation(changes, np.zeros(50, dtype=int), permutations=999, seed=0)
    assert found == 1


def test_where_nothing_moves_p_is_one():
    assert role_permutation(np.zeros((5, 2)), np.arange(5), permutations=199, seed=0) == 1


def test_permutations_in_pieces_are_those_in_one(monkeypatch):
    random = np.random.default_rng(0)
    changes = random.normal(size=(3, 40, 3))
    whole = role_permutation(changes, np.arange(40), permutations=500, seed=0)
    monkeypatch.setattr("counterray.audits.permutation._AT_ONCE", 64)
    pieces = role_permutation(changes, np.arange(40), permutations=500, seed=0)
    assert (whole == pieces).all()


def test_ranks_of_a_generator_among_null_generators_by_hand():
    changes = np.zeros((4, 20))
    changes[:, 0] = 1.0
    changes[:, 1:] = np.linspace(0, 1.9, 19)  # nine of them above 1
    found = column_permutation(changes)
    assert found == pytest.approx((1 + (np.linspace(0, 1.9, 19) >= 1).sum()) / 20)


def test_generators_that_do_nothing_tie():
    assert column_permutation(np.zeros((4, 20))) == 1
