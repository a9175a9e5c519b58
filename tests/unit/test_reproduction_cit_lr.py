"""The CIT-LR experiment: settings, tables and page; measurements themselves run in tests/cluster."""

import json
import math

import pytest

from counterray.config import ConfigError
from counterray.evaluation.report import Text
from jobs.reproduction.bars import Bar, Spread, bars_section
from jobs.reproduction.cit_lr.experiment import METHODS, SETTINGS, CalibrationRun, WorldRun
from jobs.reproduction.cit_lr.job import CitLrExperiment
from jobs.reproduction.cit_lr.report import Outcome
from jobs.reproduction.cit_lr.tables import bars, by_strength, correlation, distances
from tests.conftest import ROOT

FILE = ROOT / "jobs" / "configs" / "reproduce" / "cit_lr.yaml"


def experiment(*overrides):
    return CitLrExperiment.read(FILE, list(overrides)).config


SMALL = experiment("worlds=[linear]", "seeds=[0,1]", "strengths=[0,1]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("worlds=[]", "one or more different ones"),
        ("worlds=[cubic]", "worlds.0"),
        ("seeds=[0,0]", "one or more different numbers"),
        ("strengths=[0.5]", "with 0 among them"),
        ("reference={linear: {magic: 1}}", "reference names 'magic'; methods: cit_lr_shipped"),
        ("calibration.null_generators=5", "greater than or equal to 19"),
        ("phantom.pool=1000", r"pool = 1000 studies are too few to draw 400 \+ 200 anew"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        experiment(override)


def test_what_does_not_decide_a_measurement_does_not_repeat_it():
    world, other = (WorldRun(config, "linear", 0) for config in (SMALL, experiment("strengths=[0,1]")))
    assert world.request("world") == other.request("world")
    assert world.request("world") != WorldRun(SMALL, "linear", 1).request("world")
    changed = experiment("strengths=[0,1]", "audit.resamples=500")
    assert WorldRun(changed, "linear", 0).request("world") != world.request("world")
    assert world.folder == "seed-0/linear"
    assert CalibrationRun(SMALL, "power").folder == "calibration/power"
    images = experiment("phantom.pool=5000")
    for setting in SETTINGS:
        same = CalibrationRun(SMALL, setting).request("calibration") == CalibrationRun(
            images, setting
        ).request("calibration")
        assert same != setting.startswith("phantom")


def classifier(strength, eca, p, flip):
    row = {name: p for name in METHODS} | {"name": "c", "kind": "tree", "strength": strength, "eca": eca}
    row |= {"eca_shipped": 0.5, "effect_exact": flip, "effect_learned": flip, "orthogonal_effect": flip}
    for kind in ("exact", "learned"):
        row |= {f"p_{kind}": p, f"verdict_{kind}": "depends" if p and p < 0.05 else "invariant"}
    return row


def measured(seed):
    rows = [
        classifier(0.0, 1.0, 0.9, 0.0),
        classifier(0.0, 0.99, None, 0.01),
        classifier(1.0, 0.7, 0.02, 0.25),
        classifier(1.0, 0.5, 0.001, 0.5),
    ]
    return {
        "seed": seed,
        "classifiers": rows,
        "seconds": {"effect_exact": 2.0, "pool": 9.0},
        "positives": 0.5,
    }


def rates(setting):
    return {
        "setting": setting,
        "replicates": 400,
        "rejected": 0.0 if setting.endswith("abducted") else 0.95 if setting == "power" else 0.05,
        "rejected_delta": None if setting in ("learned_without_graph", "phantom_learned") else 0.05,
        "invariant": 0.03,
        "depends": 0.01,
        "request": {},
    }


WORLDS = {"linear": [measured(0), measured(1)]}
CALIBRATION = {setting: rates(setting) for setting in SETTINGS}


def test_correlations_order_by_evidence_and_by_effect():
    assert correlation(measured(0), "effect_exact") == pytest.approx(1.0)
    # -log10 p: .046, 0 (no p-value counts as 1), 1.7, 3 against 0, .01, .3, .5.
    assert correlation(measured(0), "cit_lr_shipped") == pytest.approx(0.8)
    same = measured(0) | {"classifiers": [classifier(0.0, 1.0, 0.5, 0.0)] * 2}
    assert math.isnan(correlation(same, "cit_lr_shipped"))


def test_rejections_by_strength():
    invariant, dependent = by_strength(SMALL, WORLDS)
    assert (invariant["classifiers"], dependent["classifiers"]) == (4, 4)
    assert invariant["eca"] == pytest.approx(0.995)
    assert invariant["rejected"]["cit_lr_shipped"] == 0
    assert dependent["rejected"] == pytest.approx(
        {name: 1.0 for name in METHODS if name != "orthogonal_effect"}
    )
    assert dependent["verdicts"]["exact"] == {"depends": 4}


def test_bars():
    found = {bar.name: bar for bar in bars(SMALL, WORLDS, CALIBRATION)}
    assert len(found) == 1 + 1 + 4 + 5 + 2 + 1
    earlier = {name for name in found if "off the earlier measurement's" in name}
    assert all(bar.met for name, bar in found.items() if name not in earlier)
    assert [found[name].met for name in earlier] == [None] * 4  # both seeds here are equal: no spread
    time = next(bar for name, bar in found.items() if name.startswith("CPU time"))
    assert time.spread.mean == pytest.approx(2 / 55)
    redrawn = next(bar for name, bar in found.items() if "exact generator that draws" in name)
    assert redrawn.note == "0.050 [0.031, 0.076], “depends” in 0.010 of 400"
    assert not any("nothing moves at all" in name for name in found)
    assert not any("against its own null interventions" in name for name in found)
    # Where something moves, the p-value that verdicts use is what is held against the bar.
    loud = {**CALIBRATION, "phantom_learned": CALIBRATION["phantom_learned"] | {"rejected": 0.08}}
    assert [bar.name for bar in bars(SMALL, WORLDS, loud) if bar.met is False] == [
        "Type I error off 0.05: phantom, learned generator, against null generators"
    ]
    missed = {**CALIBRATION, "power": CALIBRATION["power"] | {"rejected": 0.8}}
    assert [bar.name for bar in bars(SMALL, WORLDS, missed) if bar.met is False] == [
        "Power at a true mean |effect| of 0.05, n = 500"
    ]


def test_distances_from_the_earlier_measurement_by_hand():
    other = measured(1)
    other["classifiers"][2]["dp_welch"], other["classifiers"][3]["dp_welch"] = 0.8, 0.95
    found = {seed["seed"]: correlation(seed, "dp_welch") for seed in (measured(0), other)}
    # -log10 p: .046, 0, .097, .022 against 0, .01, .3, .5.
    assert found == pytest.approx({0: 0.8, 1: 0.0})
    [distance] = distances(SMALL, {"linear": [measured(0), other]})["dp_welch"].values()
    # Mean 0.4, deviation 0.8 / √2; two seeds here and two there: √(1/2 + 1/2) = 1. Earlier it was 0.20.
    assert distance == pytest.approx((0.4 - 0.20) / (0.8 / math.sqrt(2)))


def test_the_tables_are_plain_json_and_the_page_shows_them():
    outcome = Outcome(SMALL, WORLDS, CALIBRATION, facts={"Code version": "0"})
    again = json.loads(json.dumps(outcome.tables(), allow_nan=False))
    assert again["correlations"]["linear"]["effect_exact"]["seeds"] == pytest.approx([1.0, 1.0])
    assert "request" not in again["calibration"]["power"]
    page = outcome.report().render()
    for words in ("(a) Who orders", "(b) Rejections", "(c) Calibration", "(d) CPU time"):
        assert words in page
    assert "An earlier measurement with other draws" in page


def test_a_published_test_that_rejects_true_nulls_is_said_to():
    bad = measured(0)
    bad["classifiers"][0]["dp_shipped"] = 0.01
    sentences = Outcome(SMALL, {"linear": [bad]}, CALIBRATION).contradictions()
    assert sentences == [
        "DP as shipped rejects 50% of the classifiers that are invariant by construction, at a nominal 5 %."
    ]


def test_remarks_come_after_the_bars_and_nothing_is_counted_where_there_are_none():
    bars = [Bar("met", Spread((0.9,)), 0.5, "higher"), Bar("missed", Spread((0.4,)), 0.5, "higher")]
    remark = Text(["Of one seed."])
    cards, table, last = bars_section([*bars, Bar("lost", Spread.of([None]), 0.5, "higher")], remark).blocks
    assert [(card.label, card.value) for card in cards.cards] == [("Bars met", "1 of 3")]
    assert [row[0] for row in table.rows] == ["met", "missed", "lost"]
    assert last is remark
    none, empty, last = bars_section([], remark).blocks
    assert (none.empty, list(empty.rows), last) == (True, [], remark)
