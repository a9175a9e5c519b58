"""An experiment's steps, its bars and its tables; measurements themselves run in tests/cluster."""

import json
import math

import numpy as np
import pytest
import torch

from counterray.config import ConfigError
from counterray.data.dataset import DatasetManifest
from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Counterfactuals
from counterray.evaluation.pictures import grey_picture
from jobs.pipeline_config import EncodeRun, StageRun
from jobs.reproduction.bars import Bar, Spread, bars_table
from jobs.reproduction.causal_disentanglement.experiment import Arm, make_plan, read_settings
from jobs.reproduction.causal_disentanglement.pictures import picture_rows, pictures_section
from jobs.reproduction.causal_disentanglement.report import Outcome
from jobs.reproduction.causal_disentanglement.tables import (
    ablation,
    counterfactual_bars,
    never_arrived,
    rare_bars,
    steps_beside,
    utility_scores,
)
from jobs.reproduction.job import read_experiment
from jobs.reproduction.measuring import plain
from tests.conftest import ROOT

FILE = ROOT / "jobs" / "configs" / "reproduce" / "causal_disentanglement.yaml"


def experiment(*overrides):
    return read_settings(FILE, list(overrides))


# The steps.


def test_equal_steps_of_arms_are_run_once():
    plan = make_plan(FILE, experiment("seeds=[3]"))
    assert plan.models[3, "full"] == plan.models[3, "refined"] == "seed-3/refined/pathology_ldm"
    assert plan.stages["seed-3/refined/latents"].gsvae == "seed-3/both/gsvae"
    assert sum(name.endswith("/gsvae") for name in plan.stages) == 4
    assert sum(name.endswith("/latents") for name in plan.stages) == 5


def test_every_step_comes_after_what_it_needs():
    stages = make_plan(FILE, experiment()).stages
    places = {name: place for place, name in enumerate(stages)}
    for name, stage in stages.items():
        assert all(places[source] < places[name] for source in stage.needs)


def test_choosing_arms_moves_no_folder():
    everything = make_plan(FILE, experiment())
    part = make_plan(FILE, experiment("arms=[full]", "seeds=[1]"))
    assert set(part.stages) < set(everything.stages)
    assert part.models == {(1, "full"): everything.models[1, "full"]}
    assert {name: part.prepared[name] for name in part.prepared} == {
        name: everything.prepared[name] for name in part.prepared
    }


def test_arms_are_those_of_the_table():
    prepared = make_plan(FILE, experiment("seeds=[0]")).prepared
    weights = {
        arm: prepared[f"seed-0/{arm}/gsvae"]["weights"] for arm in ("baseline", "losses", "transformer")
    }
    layers = {
        arm: prepared[f"seed-0/{arm}/gsvae"]["network"]["transformer_layers"]
        for arm in ("baseline", "losses", "transformer", "both")
    }
    for arm in ("baseline", "transformer"):
        assert weights[arm]["identity"] == weights[arm]["pathology"] == weights[arm]["classification"] == 0
    assert min(weights["losses"][name] for name in ("identity", "pathology", "classification")) > 0
    assert layers == {"baseline": 0, "losses": 0, "transformer": 4, "both": 4}


def test_a_loss_s_judge_is_given_only_to_the_arms_that_use_it():
    stages = make_plan(FILE, experiment("seeds=[0]")).stages
    assert stages["seed-0/baseline/gsvae"].inputs == {}
    assert set(stages["seed-0/both/gsvae"].inputs) == {"pathology", "identity"}


def test_judges_that_score_are_apart_from_those_of_the_losses():
    prepared = make_plan(FILE, experiment()).prepared
    losses = {(prepared[f"seed-{s}/judges/{r}"]["seed"]) for s in range(3) for r in ("pathology", "identity")}
    scores = {
        (prepared[f"seed-{s}/judges/{r}"]["seed"]) for s in range(3) for r in ("classifier", "segmentor")
    }
    assert not losses & scores
    assert {prepared[f"seed-0/judges/{r}"]["loader"]["fold"] for r in ("pathology", "identity")} == {"a"}
    assert {prepared[f"seed-0/judges/{r}"]["loader"]["fold"] for r in ("classifier", "segmentor")} == {"b"}


def test_encodings_and_trainings_are_of_the_pipeline_s_kinds():
    stages = make_plan(FILE, experiment("seeds=[0]")).stages
    assert isinstance(stages["seed-0/both/latents"], EncodeRun)
    assert stages["seed-0/both/latents"].settings.prompts == "report"
    assert stages["seed-0/refined/latents"].settings.prompts == "refined_report"
    model = stages["seed-0/both/pathology_ldm"]
    assert isinstance(model, StageRun)
    assert model.data == "seed-0/both/latents"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arms=[everything]", "'everything' is no arm; arms: baseline, losses"),
        ("full=everything", "'everything' is no arm"),
        ("seeds=[]", r"seeds: .*\[\] must be one or more different numbers from 0"),
        ("seeds=[1,1]", r"seeds: .*\[1, 1\] must be one or more different numbers from 0"),
        ("seeds=[2,-1]", r"seeds: .*\[2, -1\] must be one or more different numbers from 0"),
        ("judges={}", "judges must be pathology, identity, classifier, segmentor"),
        ("scoring.images=3", "Unknown setting 'scoring.images'"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        experiment(override)


@pytest.mark.parametrize("override", ["gsvae.settings.stepps=3", "ablation.both.encode.promts=report"])
def test_settings_of_a_step_are_checked_before_anything_starts(override):
    with pytest.raises(ConfigError, match="Unknown setting"):
        make_plan(FILE, experiment(override))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ablation.full.generation.prompt=labels"], r"ablation\.full\.generation: Unknown setting 'prompt'"),
        (["ablation.full.generation.sampler.step=3"], r"Unknown setting 'sampler\.step'"),
        (["ablation.full.generation.abduction.nose=fresh"], r"Unknown setting 'abduction\.nose'"),
        (["ablation.full.generation.sampler.steps=30"], "steps = 30 must divide timesteps = 1000"),
        (
            ["ablation.refined.generation={abduction: {noise: inverted}}"],
            "ablation.refined.generation: .*ddim",
        ),
        (["rare.optimise.steps=7"], r"rare\.optimise\.steps: steps = 7 must divide timesteps = 1000"),
        (
            ["rare.optimise.steps=8", "pathology_ldm.settings={schedule.timesteps: 500, sampler.steps: 20}"],
            r"rare\.optimise\.steps: steps = 8 must divide timesteps = 500",
        ),
        (["downstream.findings=[edema,dragon]"], r"downstream\.findings names 'dragon'"),
    ],
)
def test_settings_of_a_measurement_are_checked_before_anything_starts(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(FILE, experiment(*overrides))


def test_an_unknown_experiment_is_named_with_those_that_exist():
    with pytest.raises(ConfigError, match=r"no experiment 'x'\. Available: causal_disentanglement"):
        read_experiment(FILE.with_name("x.yaml"), [])


# Numbers.


def test_a_spread_is_mean_and_deviation_over_seeds():
    spread = Spread.of([1.0, 2.0, 3.0])
    assert (spread.mean, spread.deviation) == (2.0, 1.0)
    assert spread.text == "2.00 ± 1.000"
    assert spread.as_json() == {"mean": 2.0, "deviation": 1.0, "seeds": [1.0, 2.0, 3.0]}


def test_one_seed_has_no_deviation():
    spread = Spread.of([0.5])
    assert math.isnan(spread.deviation)
    assert spread.text == "0.500"
    assert spread.as_json()["deviation"] is None


def test_a_seed_without_a_number_is_not_averaged_away():
    spread = Spread.of([1.0, None, 3.0])
    assert math.isnan(spread.mean)
    assert spread.text == ""
    assert spread.as_json() == {"mean": None, "deviation": None, "seeds": [1.0, None, 3.0]}


@pytest.mark.parametrize(
    ("values", "bar", "better", "met", "margin"),
    [
        ((0.96, 0.98), 0.95, "higher", True, 0.02),
        ((0.90, 0.92), 0.95, "higher", False, -0.04),
        ((0.95,), 0.95, "higher", True, 0.0),
        ((0.04,), 0.05, "lower", True, 0.01),
        ((0.08,), 0.05, "lower", False, -0.03),
        ((0.03, 0.05), Spread((0.05, 0.06)), "lower", True, 0.015),
        ((0.05,), Spread((0.05,)), "lower", False, 0.0),  # as good as the baseline does not beat it
    ],
)
def test_bars(values, bar, better, met, margin):
    found = Bar("what", Spread(values), bar, better)
    assert found.met is met
    assert found.margin == pytest.approx(margin)
    assert found.verdict.startswith("met, by" if met else "missed by")


def test_a_bar_says_by_how_much_it_is_missed():
    assert Bar("what", Spread((0.88,)), 0.95, "higher").verdict == "missed by 0.070"


def test_what_was_not_measured_is_neither_met_nor_missed():
    bar = Bar("what", Spread.of([None]), 0.95, "higher")
    assert bar.met is None
    assert bar.verdict == "not measured"
    json.dumps(bar.as_json(), allow_nan=False)


# Tables.


PICTURES = {name: f"data:image/png;base64,{name}" for name in ("input", "made", "exact")}


def scored(**values):
    """A seed's file of scores; ``__`` and ``_of_`` spell the brackets of a key."""
    metrics = {name: {"value": value} for name, value in values.items()}
    return {
        "metrics": metrics,
        "studies": 30,
        "optimised": 0,
        "pictures": [{"caption": "clear; asked for: edema", **PICTURES}],
    }


def seed_scores(frechet, auroc, error=0.03, no_edit=0.05, nearest=0.08, heart=0.04):
    return scored(
        **{
            "frechet_distance": frechet,
            "effectiveness_auroc_macro": auroc,
            "effectiveness_ratio_macro[common]": auroc / 0.9,
            "ground_truth_error": error,
            "ground_truth_error[no edit]": no_edit,
            "ground_truth_error[nearest training image]": nearest,
            "ground_truth_error_where_changed": 0.1,
            "ground_truth_error_where_changed[no edit]": 0.3,
            "ground_truth_error_where_changed[nearest training image]": 0.2,
            "area_deviation[heart]": heart,
            "off_target_change": 0.02,
            "off_target_change[exact counterfactual]": 0.01,
            "effectiveness_ratio[edema]": 0.97,
        }
    )


ARMS = {
    "first": Arm(label="First", published={"frechet_distance": 22.82, "auroc": 0.592}),
    "second": Arm(label="+ second", published={"frechet_distance": 20.48, "auroc": 0.614}),
}


def test_the_ablation_has_a_row_for_each_arm():
    rows = ablation(
        ARMS, {"first": [seed_scores(9, 0.6), seed_scores(11, 0.7)], "second": [seed_scores(4, 0.8)]}
    )
    assert [row.name for row in rows] == ["first", "second"]
    assert rows[0].numbers["frechet_distance"].mean == 10
    assert rows[0].numbers["auroc"].mean == pytest.approx(0.65)
    assert rows[1].numbers["area_heart"].values == (0.04,)


def test_steps_that_go_as_in_the_paper_contradict_nothing():
    scores = {"first": [seed_scores(10, 0.6)], "second": [seed_scores(9, 0.7)]}
    steps = steps_beside(ablation(ARMS, scores), fewest=10)
    assert (steps.compared, steps.against, steps.left_out) == (2, (), ())


def test_a_step_that_goes_the_other_way_is_said():
    scores = {
        "first": [seed_scores(10, 0.6), seed_scores(10, 0.6)],
        "second": [seed_scores(14, 0.7), seed_scores(9, 0.7)],
    }
    [sentence] = steps_beside(ablation(ARMS, scores), fewest=10).against
    assert sentence.startswith("Fréchet distance: the paper goes from 22.82 (First) to 20.48 (+ second)")
    assert sentence.endswith("in 1 of 2 seeds.")


def test_a_step_whose_numbers_are_missing_is_not_compared():
    scores = {"first": [seed_scores(10, 0.6)], "second": [seed_scores(9, 0.7)]}
    scores["second"][0]["metrics"]["frechet_distance"]["value"] = None
    steps = steps_beside(ablation(ARMS, scores), fewest=10)
    assert (steps.compared, steps.against) == (1, ())


def test_a_step_that_optimises_the_noise_of_two_images_is_not_compared():
    arms = {"first": ARMS["first"], "second": ARMS["second"].model_copy(update={"optimise": True})}
    scores = {"first": [seed_scores(10, 0.6)], "second": [seed_scores(14, 0.5)]}
    scores["second"][0]["optimised"] = 2
    steps = steps_beside(ablation(arms, scores), fewest=10)
    assert (steps.compared, steps.against) == (0, ())
    assert "noise was optimised in 2 of 30 images" in steps.left_out[0]
    scores["second"][0]["optimised"] = 10
    assert len(steps_beside(ablation(arms, scores), fewest=10).against) == 2


def test_bars_of_the_full_arm():
    ratio, no_edit, nearest, heart = counterfactual_bars([seed_scores(5, 0.81, error=0.06)])
    assert (ratio.met, ratio.margin) == (False, pytest.approx(0.9 - 0.95))
    assert (no_edit.met, nearest.met, heart.met) == (False, True, True)
    assert "0.100 against 0.300" in no_edit.note


def rare_seed(ratio=0.92, diversity=0.9, reached=None, times=30.0):
    entry = {
        "auroc": 0.9,
        "ratio": ratio,
        "interval": {"low": ratio - 0.1, "high": ratio + 0.1},
        "diversity": diversity,
        "deviation": 0.9,
        "distance": 0.5,
        "seconds": 0.2,
    }
    return {
        "order": ["pneumothorax"],
        "findings": {
            "pneumothorax": {
                "with": entry,
                "without": {**entry, "ratio": 0.8},
                "real": {"auroc": 0.97, "positives": 40, "negatives": 900},
                "judge": "classifier:0",
                "samples": 8,
            }
        },
        "printed": {
            "finding": "pneumothorax",
            "samples": 4,
            "start": 1.0,
            "ours": {"seconds": 0.1, "distance": 0.4},
            "as_printed": {"seconds": 0.05, "distance": 0.9},
            "trace": [
                {"iterations": 10, "seconds": 0.3, "distance": 0.9},
                {"iterations": 20, "seconds": 3.0, "distance": 0.7},
            ],
            "reached": reached,
            "times": times,
        },
    }


def test_bars_of_rare_findings():
    seeds = [rare_seed(), rare_seed(ratio=0.86, diversity=0.6)]
    ratio, diversity = rare_bars(seeds)
    assert (ratio.spread.mean, ratio.met) == (pytest.approx(0.89), False)
    assert (diversity.spread.mean, diversity.met) == (pytest.approx(0.75), False)
    assert never_arrived(seeds) == (
        "In 2 of 2 seeds Algorithm 2 as printed never comes as near to its targets as ours does, in up to 20 "
        "iterations and at least 30 times our time."
    )


def test_an_algorithm_2_that_arrives_soon_misses_the_bar():
    arrived = {"iterations": 20, "seconds": 0.3, "distance": 0.4}
    seeds = [rare_seed(reached=arrived, times=3.0)]
    times = rare_bars(seeds)[2]
    assert times.verdict == "missed by 7.00"
    assert never_arrived(seeds) == ""
    assert rare_bars([*seeds, rare_seed()])[2].note == "in 1 of 2 seeds; in the others it never is"


def utility_seed(gain):
    real = [[0.7] * 7, [0.6] * 7]
    more = [[0.7 + gain] * 7, [0.6, None, *[0.6] * 5]]
    return {
        "findings": ["edema", "pneumothorax"],
        "synthetic": 60,
        "real": 300,
        "rare": ["pneumothorax"],
        "test": 200,
        "positives": {"edema": 30, "pneumothorax": 5},
        "seed": 0,
        "metrics": {
            f"downstream_{name}_gain[{finding}]": {"value": gain, "low": -0.1, "high": 0.2}
            for name in ("auroc", "sensitivity", "ppv", "f1")
            for finding in ("edema", "pneumothorax")
        },
        "scores": {"real": real, "with synthetic": more},
    }


def test_downstream_scores_of_seeds_are_joined():
    scores, findings = utility_scores([utility_seed(0.1), utility_seed(0.2)])
    assert findings == ("edema", "pneumothorax")
    assert scores["with synthetic"].shape == (2, 2, 7)
    assert np.isnan(scores["with synthetic"][:, 1, 1]).all()
    assert scores["with synthetic"][1, 0, 0] == pytest.approx(0.9)


MANIFEST = DatasetManifest(
    study_schema=1,
    source="phantom",
    config={},
    code_version="0",
    image_size=32,
    finding_names=("edema", "pneumothorax"),
    vocabulary={},
    counts={"train": {"studies": 3, "patients": 2, "findings": {}, "sex": {}, "age_band": {}}},
    quarantined={},
    shards={},
    fingerprint="abc",
)


def outcome(**more):
    scores = {name: [seed_scores(5, 0.81)] for name in ("optimised", "full")}
    return Outcome(experiment("seeds=[0]"), MANIFEST, scores, **more)


def test_the_tables_are_plain_json_with_every_seed():
    tables = outcome(rare=[rare_seed()], utility=[utility_seed(0.1)]).tables()
    again = json.loads(json.dumps(tables, allow_nan=False))
    assert again["ablation"][0]["published"] == {"frechet_distance": 7.25, "auroc": 0.811}
    assert again["ablation"][1]["published"] == {}
    assert again["ablation"][0]["frechet_distance"]["seeds"] == [5.0]
    assert len(again["bars"]) == 4 + 2
    assert again["counterfactuals"]["edema"]["effectiveness_ratio"]["mean"] == 0.97
    assert again["counterfactuals"]["pneumothorax"]["effectiveness_ratio"]["mean"] is None


def test_the_page_shows_all_four_tables():
    page = outcome(rare=[rare_seed()], utility=[utility_seed(0.1)]).report().render()
    for text in ("(a) Ablation", "(b) Counterfactuals", "(c) Rare findings", "(d) Downstream use"):
        assert text in page
    assert "missed by 0.050" in page
    assert "In 1 of 1 seeds Algorithm 2 as printed never comes as near" in page
    assert "pneumothorax 5. A rate rests on these alone." in page
    assert "+0.100 (-0.100 to +0.200)" in page
    assert "way that they go in the paper" not in page, "of these two arms one has no published number"
    assert "0.811" in page
    assert "Algorithm 2, 20 iterations" in page


def test_pictures_stand_between_input_and_truth_with_a_column_an_arm():
    [grid] = pictures_section(outcome().scores, {"optimised": "L_P", "full": "all"}).blocks
    assert grid.columns == ["Input", "L_P", "all", "Exact counterfactual"]
    [row] = grid.rows
    assert row.images == [PICTURES[name] for name in ("input", "made", "made", "exact")]


@pytest.mark.parametrize("truth", [None, torch.ones(2, 1, 16, 16)])
def test_pictures_say_what_was_asked_for_and_name_nobody(truth):
    findings = torch.tensor([[0.0], [1.0]])
    source, donor = (
        Batch(
            image=torch.zeros(2, 1, 16, 16),
            attributes={},
            findings=labels,
            finding_mask=torch.ones(2, 1, dtype=torch.bool),
            finding_names=("edema",),
            image_ids=("SECRET-1", "SECRET-2"),
            patient_ids=("SECRET-3", "SECRET-4"),
        )
        for labels in (findings, 1 - findings)
    )
    made = Counterfactuals(
        source=source, donor=donor, image=source.image, reconstruction=source.image, exact=truth
    )
    rows = picture_rows(made)
    assert [row["caption"] for row in rows] == [
        "no finding; asked for: edema",
        "edema; asked for: no finding",
    ]
    assert all(("exact" in row) is (truth is not None) for row in rows)
    assert rows[0]["input"] == rows[0]["made"] == grey_picture(source.image[0])
    assert "SECRET" not in json.dumps(rows)


def test_a_part_without_the_full_arm_says_so():
    part = Outcome(experiment("seeds=[0]"), MANIFEST, {"baseline": [seed_scores(5, 0.8)]})
    assert part.bars() == []
    page = part.report().render()
    assert "arm with everything was not among" in page
    assert "(c) Rare findings" not in page


def test_a_table_of_bars_has_limit_and_verdict():
    [row] = bars_table([Bar("what", Spread((0.3,)), Spread((0.5,)), "lower")]).rows
    assert list(row) == ["what", "0.300", "below 0.500", "met, by 0.200", ""]


def test_what_json_cannot_say_is_none_however_deep():
    assert plain({"a": [math.nan, (1.0, math.inf)], "b": "nan"}) == {"a": [None, [1.0, None]], "b": "nan"}
