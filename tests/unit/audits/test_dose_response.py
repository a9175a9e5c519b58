"""Dose-response of a continuous attribute: a line by hand, verdicts, and doses that cannot be followed."""

import numpy as np
import pytest

from counterray.audits.dose_response import dose_response
from counterray.audits.dose_scores import DoseScores
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
    assert (still.verdict, still.p_value, still.most_flips.flips.value) == ("invariant", 1.0, 0.0)
    assert audit_of(scores(size=40)).verdict == "inconclusive"


def curved(*means, size=200):
    """Everyone's score is 0.4 and follows the same curve, up to 0.001 apart; all are observed at its ends."""
    base = np.linspace(0.4, 0.401, size)
    at = np.array(means)
    own = np.where(np.arange(size) % 2, DOSES[0], DOSES[-1])
    still = base + np.where(own == DOSES[0], at[0], at[-1])
    intervened = (base[:, None] + at)[None]
    return scores(size=size, own=own, at_own=still[None], intervened=intervened, placebo=still[None, :, None])


def test_a_response_that_returns_to_where_it_began_is_not_invariant():
    found = audit_of(curved(0, 0.4, 0))
    assert [(pair.first, pair.second) for pair in found.pairs] == [(30, 50), (30, 70), (50, 70)]
    assert [pair.mean.value for pair in found.pairs] == pytest.approx([0.4, 0, -0.4])
    assert [pair.flips.value for pair in found.pairs] == [1, 0, 1]
    # Within the margins from end to end: nothing in 200 patients, though one in twenty would do, 0.95^200.
    assert found.pairs[1].p_equivalence == pytest.approx(0.95**200)
    assert found.p_equivalence == found.pairs[0].p_equivalence == 1
    assert [point.value for point in found.curve] == pytest.approx([0, 0.4, 0])
    assert found.slope.value == pytest.approx(0)
    assert (found.widest, found.most_flips) == (found.pairs[0], found.pairs[0])
    assert found.verdict == "depends"


@pytest.mark.parametrize("means", [(0, 0.02, 0), (0, 0.01, 0.02), (0.02, 0.01, 0)])
def test_a_small_response_of_any_shape_is_invariant(means):
    found = audit_of(curved(*means))
    assert abs(found.widest.mean.value) == pytest.approx(0.02)
    assert found.verdict == "invariant"
    assert found.p_equivalence == max(pair.p_equivalence for pair in found.pairs)


def test_a_change_between_two_inner_doses_counts():
    """Neither of them is the lowest; from the lowest either is within the margin of 0.05."""
    doses = (30.0, 45.0, 60.0, 75.0)
    base = np.linspace(0.3, 0.301, 200)
    still = base[None]
    data = scores(
        doses=doses,
        own=np.full(200, 30.0),
        at_own=still,
        intervened=(base[:, None] + np.array([0, 0.04, -0.04, 0]))[None],
        placebo=still[..., None],
    )
    found = audit_of(data)
    assert (found.widest.first, found.widest.second) == (45, 60)
    assert found.widest.mean.value == pytest.approx(-0.08)
    assert max(abs(point.value) for point in found.curve) == pytest.approx(0.04)
    assert found.verdict == "depends"


def test_dependence_is_corrected_over_doses():
    """Three doses, Holm's first step: the smallest p times three."""
    found = audit_of(scores(slope=0.002, noise=0.02))
    assert found.p_corrected == pytest.approx(min(1, 3 * found.p_value))


def test_a_target_that_cannot_be_audited_costs_itself_only():
    whole = scores(slope=0.002)
    targets = [Target(classifier="c", finding=name) for name in ("edema", "nan", "constant")]
    arrays = {
        name: np.concatenate([values, values * np.nan, np.full_like(values, 0.3)])
        for name, values in (
            ("at_own", whole.at_own),
            ("intervened", whole.intervened),
            ("placebo", whole.placebo),
        )
    }
    audit = dose_response(scores(targets=targets, **arrays), config(), readings=[])
    assert audit.verdicts() == {"c, edema": "depends"}
    assert "no finite numbers" in audit.refused["c, nan"]
    assert "the score is 0.3 for all 200 individuals at all doses" in audit.refused["c, constant"]


def test_noise_of_the_generator_is_no_dependence():
    p_values = [audit_of(scores(noise=0.03, seed=seed)).p_corrected for seed in range(60)]
    assert np.mean(np.array(p_values) <= 0.05) < 0.2


def test_a_closed_gate_comes_first():
    readings = [Reading(gate="effectiveness", value=0.2)]
    audit = dose_response(scores(slope=0.002), AuditConfig(resamples=200), readings=readings)
    assert audit.findings[0].verdict == "cannot_tell"
    assert audit.doses == DOSES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: scores(doses=(30.0,)), r"doses.age = \[30\]: a response needs two or more doses"),
        (lambda: scores(doses=(50.0, 30.0)), r"doses.age = \[50, 30\].*ascending"),
        (lambda: scores(own=np.full(200, np.nan)), "200 own doses are no finite numbers"),
        (lambda: scores(own=np.zeros(3)), r"own has shape \(3,\); \(200,\) is needed"),
        (lambda: scores(placebo=np.zeros((1, 200, 0))), "placebo holds no null intervention"),
        (lambda: scores(size=5), "5 patients; minimum_patients = 10"),
        (lambda: scores(at_own=np.full((1, 200), np.nan)), "200 of 200 scores are no finite"),
    ],
)
def test_doses_that_cannot_be_followed(data, message):
    with pytest.raises(AuditError, match=message):
        audit_of(data())
