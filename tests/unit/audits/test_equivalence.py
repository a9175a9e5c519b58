"""Equivalence, corrections and power: by hand, and against statsmodels and SciPy."""

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from counterray.audits.clustered import ClusteredMeans
from counterray.audits.equivalence import (
    below_margin,
    effective_patients,
    equivalence_of_means,
    rate_below_margin,
    rate_interval,
    rates_among,
    unseen,
)
from counterray.audits.errors import AuditError
from counterray.audits.multiplicity import benjamini_yekutieli, corrected, holm
from counterray.audits.power import detectable_effect, patients_for_equivalence, patients_to_detect


def means_of(values):
    return ClusteredMeans.of(np.asarray(values, dtype=float), np.arange(np.shape(values)[-1]))


def test_two_one_sided_tests_are_those_of_statsmodels():
    half = np.random.default_rng(0).normal(0, 0.3, 300)
    values = np.concatenate([0.01 + half, 0.01 - half])  # no skewness, so Hall's correction is none
    expected, *_ = DescrStatsW(values).ttost_mean(-0.03, 0.03)
    assert 0.01 < expected < 0.1
    assert equivalence_of_means(means_of(values), 0.03) == pytest.approx(expected, rel=1e-6)


def test_two_one_sided_tests_by_hand():
    # Fifty of 0.31, fifty of -0.29: mean 0.01, error 0.3 / sqrt(99), no skewness. The nearer bound decides:
    # t = (0.05 - 0.01) / error with 99 degrees of freedom.
    means = means_of([0.31, -0.29] * 50)
    error = 0.3 / math.sqrt(99)
    assert means.p_less(0.05) == pytest.approx(t.sf(0.04 / error, 99))
    assert means.p_greater(-0.05) == pytest.approx(t.sf(0.06 / error, 99))
    assert equivalence_of_means(means, 0.05) == pytest.approx(t.sf(0.04 / error, 99))
    assert below_margin(means, 0.05) == pytest.approx(t.sf(0.04 / error, 99))


def test_few_patients_cannot_prove_a_small_margin_however_still_they_are():
    still = means_of(np.zeros(20))
    assert equivalence_of_means(still, 0.05) == pytest.approx(0.95**20)
    assert below_margin(still, 0.05) == pytest.approx(0.95**20)
    assert equivalence_of_means(means_of(np.zeros(59)), 0.05) < 0.05
    assert unseen(58, 0.05) > 0.05


@pytest.mark.parametrize("hits", [0, 1, 7, 30])
def test_rates_of_independent_patients_are_those_of_the_exact_binomial(hits):
    values = np.zeros(500)
    values[:hits] = 1
    means = means_of(values)
    # The error divides by P - 1, so that n* is 499 where anything varies.
    size = 500 if hits == 0 else 499
    assert effective_patients(means) == pytest.approx(size)
    low, high = rate_interval(means)
    expected = proportion_confint(hits, 500, method="beta")
    assert (float(low), float(high)) == pytest.approx(expected, rel=1e-2)
    exact = binomtest(hits, 500, 0.05, alternative="less").pvalue
    assert rate_below_margin(means, 0.05) == pytest.approx(exact, rel=0.05)


def test_rates_among_some_are_of_their_own_patients_alone():
    seen, among = np.zeros((1, 1, 500), dtype=bool), np.zeros((1, 500), dtype=bool)
    seen[..., :7] = seen[..., 400:] = True  # those from 400 on are not among whom the rate is about
    among[:, :200] = True
    value, low, high = (ends.item() for ends in rates_among(seen, among, np.arange(500)))
    assert value == 7 / 200
    assert (low, high) == pytest.approx(proportion_confint(7, 200, method="beta"), rel=1e-2)
    of_patients = rates_among(np.repeat(seen, 2, -1), np.repeat(among, 2, -1), np.arange(500).repeat(2))
    assert [ends.item() for ends in of_patients] == pytest.approx([value, low, high])


def test_rates_among_one_patient_and_nobody():
    seen, patients = np.array([[[True, False, False]]]), np.array([0, 0, 1])
    one = rates_among(seen, np.array([[True, True, False]]), patients)
    assert [ends.item() for ends in one] == [0.5, 0, 1]
    assert np.isnan(rates_among(seen, np.zeros((1, 3), dtype=bool), patients)).all()


def test_a_rate_that_was_never_seen_has_the_rule_of_three():
    _, high = rate_interval(means_of(np.zeros(300)))
    assert high == pytest.approx(1 - 0.025 ** (1 / 300))
    assert rate_below_margin(means_of(np.ones(30)), 0.05) == 1


def test_false_equivalence_of_a_rate_on_the_margin_is_bounded_by_the_binomial():
    flips = np.arange(60)
    claimed = [
        k for k in flips if rate_below_margin(means_of(np.r_[np.ones(k), np.zeros(500 - k)]), 0.05) <= 0.05
    ]
    assert binom.cdf(max(claimed), 500, 0.05) <= 0.05


def test_repeated_images_are_no_more_patients():
    once = ClusteredMeans.of(np.array([1.0, 0, 0, 0, 1, 0, 0, 0]), np.arange(8))
    thrice = ClusteredMeans.of(np.repeat([1.0, 0, 0, 0, 1, 0, 0, 0], 3), np.repeat(np.arange(8), 3))
    assert thrice.error == pytest.approx(once.error)
    assert effective_patients(thrice) == pytest.approx(effective_patients(once))


def test_a_clustered_rate_has_the_interval_of_fewer_patients_by_hand():
    # Four of twenty patients flip in both of their images, the rest in none: rate 0.2, error² =
    # 20/19 · 20 · 0.2 · 0.8 · 2² / 40², so n* = 0.16 / error² = 19, and never the 40 images.
    means = ClusteredMeans.of(np.repeat([1.0] * 4 + [0.0] * 16, 2), np.repeat(np.arange(20), 2))
    assert effective_patients(means) == pytest.approx(19)
    low, high = rate_interval(means)
    assert low == pytest.approx(beta.ppf(0.025, 3.8, 15.2 + 1))
    assert high == pytest.approx(beta.ppf(0.975, 3.8 + 1, 15.2))
    assert rate_below_margin(means, 0.5) == pytest.approx(beta.sf(0.5, 4.8, 15.2))


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04: times 4 3 2 1 gives .04 .06 .06 .04, made monotone: .04 .06 .06 .06.
    assert holm(np.array([0.04, 0.01, 0.03, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_benjamini_yekutieli_by_hand():
    # m Σ 1/k = 3 · 11/6 = 5.5: .01·5.5/1 = .055, .02·5.5/2 = .055, .3·5.5/3 = .55.
    assert benjamini_yekutieli(np.array([0.3, 0.01, 0.02])) == pytest.approx([0.55, 0.055, 0.055])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_corrections_are_those_of_statsmodels(p_values):
    p = np.array(p_values)
    # statsmodels collects the whole process's garbage at each call, which takes most of a second.
    with mock.patch("gc.collect"):
        expected = {method: multipletests(p, method=method)[1] for method in ("holm", "fdr_by")}
    assert np.allclose(holm(p), expected["holm"])
    assert np.allclose(benjamini_yekutieli(p), expected["fdr_by"])


def test_a_missing_p_value_is_no_member_of_a_family():
    with pytest.raises(AuditError, match="leave out tests that could not be made"):
        corrected(np.array([0.1, np.nan]), "holm")
    assert corrected(np.array([]), "holm").tolist() == []
    assert corrected(np.array([0.2, 0.3]), "none").tolist() == [0.2, 0.3]


@pytest.mark.parametrize("power", [0.8, 0.9])
@pytest.mark.parametrize("effect", [0.1, 0.3, 0.8])
def test_patients_needed_are_those_of_statsmodels(effect, power):
    expected = TTestPower().solve_power(effect, nobs=None, alpha=0.05, power=power, alternative="larger")
    found = patients_to_detect(np.array([1.0]), effect, alpha=0.05, power=power)
    assert found[0] == pytest.approx(math.ceil(expected), abs=1)


@pytest.mark.parametrize("patients", [30, 200, 1000])
def test_detectable_effects_are_those_of_statsmodels(patients):
    expected = TTestPower().solve_power(None, nobs=patients, alpha=0.05, power=0.9, alternative="larger")
    found = detectable_effect(np.array([1.0]), patients, alpha=0.05, power=0.9)
    assert found[0] == pytest.approx(expected, rel=0.01)


def test_equivalence_of_still_scores_needs_the_patients_to_have_seen_a_rare_jump():
    found = patients_for_equivalence(np.array([0.0, 0.5]), 0.05, alpha=0.05, power=0.9)
    assert found[0] == math.ceil(math.log(0.05) / math.log(0.95))
    # (1.6449 + 1.6449)² · 100 + 1.6449² / 2
    assert found[1] == pytest.approx(1084, abs=1)


def test_two_patients_detect_nothing():
    assert detectable_effect(np.array([0.1]), 1, alpha=0.05, power=0.9)[0] == math.inf
