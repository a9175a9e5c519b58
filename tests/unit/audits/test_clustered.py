"""Clustered means and resamples: by hand, and against statsmodels and SciPy."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import bootstrap, t, ttest_1samp

from counterray.audits.clustered import (
    ClusteredMeans,
    patient_sums,
    patient_weights,
    percentiles,
    resampled_medians,
    resampled_ratios,
)
from counterray.evaluation.intervals import patient_resamples


def test_sums_by_patient_in_the_order_of_their_numbers():
    values = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert patient_sums(values, np.array([1, 0, 1, 2])).tolist() == [[2.0, 4.0, 4.0]]


def test_mean_and_error_by_hand():
    # Patients a: 0, 0.2; b: 0.4. mean = 0.2; e = (0.2 - 0.4, 0.4 - 0.2) = (-0.2, 0.2);
    # error² = 2 / 1 · 0.08 / 9.
    found = ClusteredMeans.of(np.array([0.0, 0.2, 0.4]), np.array([0, 0, 1]))
    assert found.mean == pytest.approx(0.2)
    assert found.error == pytest.approx(math.sqrt(0.16) / 3)
    assert found.patients == 2
    # The quantile of t with one degree of freedom is tan(0.475 π).
    low, high = found.interval()
    assert (high - low) / 2 == pytest.approx(math.tan(0.475 * math.pi) * 0.4 / 3)


def test_error_is_that_of_statsmodels_clustered_regression():
    random = np.random.default_rng(0)
    patients = random.integers(0, 40, 150)
    patients = np.unique(patients, return_inverse=True)[1]
    values = random.normal(size=40)[patients] + random.normal(size=150)
    fit = sm.OLS(values, np.ones(150)).fit(cov_type="cluster", cov_kwds={"groups": patients}, use_t=True)
    found = ClusteredMeans.of(values, patients)
    assert found.mean == pytest.approx(fit.params[0])
    assert found.error == pytest.approx(fit.bse[0])
    assert found.interval() == pytest.approx(fit.conf_int()[0])


def test_without_skewness_the_test_is_the_t_test():
    values = np.array([0.3, -0.1, 0.5, 0.9, 0.4, 0.0, 0.8])  # symmetric about 0.4
    values = np.concatenate([values, 0.8 - values])
    found = ClusteredMeans.of(values, np.arange(len(values)))
    assert found.skewness == pytest.approx(0, abs=1e-12)
    assert found.p_greater(0.1) == pytest.approx(ttest_1samp(values, 0.1, alternative="greater").pvalue)
    assert found.p_less(0.5) == pytest.approx(ttest_1samp(values, 0.5, alternative="less").pvalue)


def test_halls_transformation_by_hand():
    # 1 of 4 is 1: mean 1/4, population variance 3/16, skewness (1 - 2p) / sqrt(p q) = 2 / sqrt(3).
    found = ClusteredMeans.of(np.array([1.0, 0, 0, 0]), np.arange(4))
    gamma = 2 / math.sqrt(3)
    assert found.skewness == pytest.approx(gamma)
    error = math.sqrt(4 / 3 * 3 / 16 * 4) / 4
    w = 0.25 / (error * 2)
    expected = 2 * (w + gamma * w**2 / 3 + gamma**2 * w**3 / 27 + gamma / 24)
    assert found.p_greater(0.0) == pytest.approx(t.sf(expected, 3))


def test_equal_values_have_no_error_and_a_certain_answer():
    found = ClusteredMeans.of(np.full((1, 30), 0.1), np.arange(30))
    assert found.error[0] == 0
    assert (found.p_greater(0.05)[0], found.p_greater(0.1 + 1e-9)[0]) == (0.0, 1.0)


def test_weights_are_the_resamples_of_the_evaluation():
    patients = ["a", "b", "b", "c"]
    weights = patient_weights(3, resamples=2000, seed=0)
    values = np.array([0.0, 1.0, 1.0, 5.0])
    ratios = resampled_ratios(weights, values, np.ones(4), np.array([0, 1, 1, 2]))
    rows = [values[drawn].mean() for drawn in patient_resamples(patients, resamples=2000, seed=1)]
    assert np.mean(ratios) == pytest.approx(np.mean(rows), abs=0.08)
    assert np.std(ratios) == pytest.approx(np.std(rows), rel=0.08)
    assert (weights.sum(axis=1) == 3).all()


def test_percentile_intervals_are_those_of_scipy():
    values = np.random.default_rng(0).exponential(size=80)
    weights = patient_weights(80, resamples=4000, seed=0)
    draws = resampled_ratios(weights, values, np.ones(80), np.arange(80))
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=0)
    low, high = percentiles(draws)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.02)


def test_percentiles_by_hand():
    # 2.5 % of 41 values are passed by the second, 97.5 % by the fortieth.
    assert percentiles(np.arange(1.0, 42.0)) == (2.0, 40.0)


def test_resampled_medians_are_the_medians_of_the_rows_drawn():
    random = np.random.default_rng(0)
    patients = np.array([0, 0, 1, 2, 2, 3, 4])
    values = random.normal(size=(2, 7))
    weights = patient_weights(5, resamples=50, seed=0)
    found = resampled_medians(weights, values, patients)
    for b in range(50):
        times = weights[b, patients].astype(int)
        for c in range(2):
            rows = np.sort(np.repeat(values[c], times))
            assert found[b, c] == rows[(len(rows) - 1) // 2]


def test_percentiles_leave_out_what_has_no_value():
    draws = np.array([[1.0, np.nan, np.nan], [2.0, np.nan, 5.0], [3.0, np.nan, 6.0]])
    low, high = percentiles(draws)
    assert low.tolist()[0] == 1.0
    assert high.tolist()[0] == 3.0
    assert np.isnan(low[1])
    assert (low[2], high[2]) == (5.0, 6.0)
