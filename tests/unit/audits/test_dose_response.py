"""Dose-response of a continuous attribute: a line by hand, verdicts, and doses that cannot be followed."""

import numpy as np
import pytest

from counterray.audits.dose_response import DoseScores, dose_response
from counterray.audits.errors import AuditError
from counterray.audits.gates import Reading
from counterray.audits.scores import Target
from counterray.audits.settings import AuditConfig
from tests.audit_scores import config

DOSES = (30.0, 50.0, 70.0)


def scores(slope=0.0, *, size=200, noise=0.0, doses=DOSES, seed=0, **changes):
    random = np.random.default_rng(seed)
    own = random.uniform(30, 70, size)
    base = random.uniform(0.35, 0.45, size)

    def generated(ages):
        return base + slope * (ages - 50) + random.normal(0, noise, size)

    values = {
        "attribute": "age",
        "unit": "years",
        "doses": doses,
        "targets": [Target(classifier="c", finding="edema")],
        "own": own,
        "at_own": generated(own)[None],
        "intervened": np.stack([generated(dose) for dose in doses], axis=-1)[None],
        "placebo": generated(own)[None, :, None],
        "patients": [f"p{k}" for k in range(size)],
    }
    return DoseScores(**(values | changes))


def audit_of(data, **settings):
    [finding] = dose_response(data, config(**settings), readings=[]).findings
    return finding


def test_a_line_by_hand():
    found = audit_of(scores(slope=0.002))
    assert [point.value for point in found.curve] == pytest.approx([0, 0.04, 0.08])
    assert found.slope.value == pytest.approx(0.002)
    assert (found.slope.low, found.slope.high) == pytest.approx((0.002, 0.002))
    assert found.verdict == "depends"


def test_a_slope_under_noise_is_within_its_interval():
    found = audit_of(scores(slope=0.002, noise=0.02))
    assert found.slope.low < 0.002 < found.slope.high
    assert found.curve[2].low < 0.08 < found.curve[2].high
    assert found.verdict == "depends"


def test_a_flat_line_is_invariant_with_enough_patients():
    still = audit_of(scores())
    assert (still.verdict, still.p_value, still.flip_rate) == ("invariant", 1.0, 0.0)
    assert audit_of(scores(size=40)).verdict == "inconclusive"


def test_noise_of_the_generator_is_no_dependence():
    p_values = [audit_of(scores(noise=0.03, seed=seed)).p_value for seed in range(60)]
    assert np.mean(np.array(p_values) <= 0.05) < 0.2


def test_a_closed_gate_comes_first():
    readings = [Reading(gate="effectiveness", value=0.2)]
    audit = dose_response(scores(slope=0.002), AuditConfig(resamples=200), readings=readings)
    assert audit.findings[0].verdict == "cannot_tell"
    assert audit.doses == DOSES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: scores(doses=(30.0,)), "two or more, ascending"),
        (lambda: scores(doses=(50.0, 30.0)), "two or more, ascending"),
        (lambda: scores(size=5), "5 patients; minimum_patients = 10"),
        (lambda: scores(at_own=np.full((1, 200), np.nan)), "200 of 200 scores are no finite"),
    ],
)
def test_doses_that_cannot_be_followed(data, message):
    with pytest.raises(AuditError, match=message):
        audit_of(data())
