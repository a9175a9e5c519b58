"""The experiment on classifiers of known truth: its trainings, its measurement in small, its tables."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from counterray.audits.image_worlds import PairTruth
from counterray.audits.settings import MarginConfig
from counterray.audits.worlds.level_images import render_levels
from counterray.bundle import write_bundle
from counterray.config import ConfigError
from counterray.data.dataset import DatasetInfo
from counterray.data.phantom.scm import VOCABULARY
from counterray.data.phantom.studies import make_batch
from counterray.models.mine_ldm.generator import GenerationConfig, open_ldm
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.models.predictors.demographic import DemographicConfig, DemographicStage
from counterray.models.predictors.identity import IdentityEncoderConfig, IdentityEncoderStage
from counterray.storage import resolve
from jobs.reproduction.counterfactual_audit.experiment import GENERATORS, PoolRun, make_plan, read_settings
from jobs.reproduction.counterfactual_audit.generating import exact, generated, untrained
from jobs.reproduction.counterfactual_audit.judging import Judges
from jobs.reproduction.counterfactual_audit.pool import in_margins, measure_pool
from jobs.reproduction.counterfactual_audit.report import Outcome
from jobs.reproduction.counterfactual_audit.tables import TESTS, Score, bars, mistakes, scores, total
from jobs.reproduction.job import read_experiment
from tests.conftest import ROOT
from tests.small_mine_ldm import ldm_stage, perturbation_stage, vae_stage

FILE = ROOT / "jobs" / "configs" / "reproduce" / "counterfactual_audit.yaml"
TINY = {"widths": (8,), "blocks": (1,)}


def experiment(*overrides):
    return read_settings(FILE, list(overrides))


# Settings and trainings.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=[1,1]", "one or more different numbers"),
        ("ingest.image_size=64", "pool.image_size = 32 must be ingest.image_size = 64"),
        ("judges={judge: {config: a.yaml}}", "judges must be judge, classifier"),
        ("generations={}", "generation"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        experiment(override)


def test_judges_that_score_have_other_patients_and_another_seed_than_the_generator():
    plan = make_plan(FILE, experiment("seeds=[0,7]"))
    assert set(plan.stages) == set(plan.prepared)
    assert len(plan.stages) == 2 * 7
    for seed in (0, 7):
        made = {
            name: plan.prepared[f"seed-{seed}/{name}"] for name in ("judge", "vae", "perturbation", "ldm")
        }
        assert {part["loader"]["fold"] for part in made.values()} == {"a"}
        assert {part["seed"] for part in made.values()} == {seed}
        for stage in ("classifier", "demographic", "identity_encoder"):
            judge = plan.prepared[f"seed-{seed}/{stage}"]
            assert (judge["loader"]["fold"], judge["seed"]) == ("b", seed + 1000)
    places = {name: place for place, name in enumerate(plan.stages)}
    assert all(places[s] < places[name] for name, stage in plan.stages.items() for s in stage.needs)


def test_without_its_second_stage_the_generator_is_the_baseline():
    plan = make_plan(FILE, experiment("seeds=[0]", "perturbation=null"))
    assert "seed-0/perturbation" not in plan.stages
    assert plan.stages["seed-0/ldm"].inputs == {"vae": "seed-0/vae"}
    assert plan.prepared["seed-0/ldm"]["perturbed"] is False


def test_the_experiment_is_found_by_its_name():
    assert read_experiment(FILE, ["seeds=[3]"]).config.seeds == (3,)


# Generating, judging, measuring: networks that have learned nothing, on true phantom images.


@pytest.fixture(scope="module")
def individuals():
    return render_levels(make_batch(60, 32, seed=4), attribute="scanner")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, individuals):
    folder = tmp_path_factory.mktemp("bundles")
    data = DatasetInfo(image_size=32, finding_names=individuals.batch.finding_names, vocabulary=VOCABULARY)
    stages = {
        "classifier": ClassifierStage(ClassifierConfig(backbone=TINY)),
        "demographic": DemographicStage(DemographicConfig(backbone=TINY, attributes=("sex", "scanner"))),
        "identity_encoder": IdentityEncoderStage(IdentityEncoderConfig(backbone=TINY)),
        "vae": vae_stage(),
        "perturbation": perturbation_stage(),
        "ldm": ldm_stage(),
    }
    made = {}
    torch.manual_seed(0)
    for name, stage in stages.items():
        inputs = {role: made[role] for role in stage.inputs}
        made[name] = write_bundle(
            resolve(folder / name),
            method="test",
            stage=stage.name,
            config=stage.config.model_dump(mode="json"),
            export=stage.export(stage.build(inputs, data)),
            data_fingerprint="phantom",
            parents=inputs,
        )
    return made


INVERTED = GenerationConfig(sampler={"steps": 10}, abduction={"noise": "inverted"})


def test_a_deterministic_generators_null_intervention_is_its_image_at_the_own_level(bundles, individuals):
    made = generated(open_ldm(bundles["ldm"], INVERTED), individuals, nulls=3, seed=0)
    assert made.images.shape == (4, 60, 1, 32, 32)
    assert made.null.shape == (1, 60, 1, 32, 32)
    own = torch.from_numpy(individuals.own)
    assert torch.equal(made.null[0], made.images[own, torch.arange(60)])


def test_null_interventions_of_fresh_noise_differ_and_repeat_with_the_seed(bundles, individuals):
    model = open_ldm(bundles["ldm"])
    first, again = (generated(model, individuals, nulls=2, seed=5) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.null, again.null)
    assert first.null.shape[0] == 2
    assert not torch.equal(first.null[0], first.null[1])


def test_shuffled_levels_do_not_follow_the_one_that_is_asked_for(bundles, individuals):
    model = open_ldm(bundles["ldm"], INVERTED)
    with torch.no_grad():  # an untrained embedding hardly shows; make its levels tell
        model.denoiser.embeddings["scanner"].weight.mul_(30)
    asked = generated(model, individuals, nulls=1, seed=0).images
    shuffled = generated(model, individuals, nulls=1, seed=0, shuffled=True).images
    same = torch.stack([(shuffled == level[None]).flatten(2).all(2) for level in asked])  # [asked, K, N]
    assert (same.sum(0) == 1).all()  # each is one of the individual's own images
    right = same[torch.arange(4), torch.arange(4)].float().mean()
    assert 0.1 < float(right) < 0.4  # a quarter by chance


def test_levels_that_are_compared_are_found_by_name_among_those_that_the_generator_knows(
    bundles, individuals
):
    model = open_ldm(bundles["ldm"], INVERTED)
    with torch.no_grad():
        model.denoiser.embeddings["scanner"].weight.mul_(30)
    some = render_levels(individuals.batch, attribute="scanner", levels=("digital", "compact"))
    rows = [k for k, level in enumerate(individuals.own) if level in (1, 2)]
    made = generated(model, some, nulls=1, seed=0).images
    whole = generated(model, individuals, nulls=1, seed=0).images[:, rows]
    for k, level in enumerate((2, 1)):
        torch.testing.assert_close(made[k], whole[level], atol=1e-5, rtol=0)


def test_an_untrained_generator_keeps_all_but_the_denoiser(bundles):
    model = open_ldm(bundles["ldm"])
    state = torch.random.get_rng_state()
    other = untrained(model, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in model.state_dict().items():
        same = torch.equal(value, other.state_dict()[name])
        assert same or name.startswith("denoiser.")
    assert not torch.equal(model.denoiser.embeddings["sex"].weight, other.denoiser.embeddings["sex"].weight)


def test_readings_of_the_renderer_and_of_images_of_others(bundles, individuals):
    judges = Judges({stage: bundles[stage] for stage in ("classifier", "demographic", "identity_encoder")})
    found = {each.gate: each for each in judges.readings(individuals, exact(individuals).images)}
    assert set(found) == {"composition", "identity", "off_target", "effectiveness", "judge_auroc"}
    assert found["composition"].value == 0
    assert found["effectiveness"].judge.startswith("demographic:")
    others = individuals.images.roll(1, dims=1)
    worse = {each.gate: each for each in judges.readings(individuals, others)}
    assert worse["composition"].value > 0.03
    assert worse["identity"].value < found["identity"].value
    assert worse["judge_auroc"].value == found["judge_auroc"].value  # on the observed images


def test_a_pool_is_measured_and_what_cannot_be_told_is_not(bundles):
    small = experiment(
        "seeds=[0]",
        "individuals=120",
        "components=4",
        "generation={sampler: {steps: 10}}",
        "pool.studies=150",
        "pool.truth_studies=60",
        "pool.kinds=[rerendered]",
        "pool.findings=[pleural_effusion]",
        "pool.strengths=[0, 1]",
        "pool.network={backbone: {widths: [8], blocks: [1]}, steps: 20, batch_size: 16}",
        "audit={minimum_patients: 2, resamples: 200, permutations: 199}",
        "cit_lr.nuisance.epochs=5",
        "least_patients=2",
    )
    judges = {
        stage: bundles[stage].location.uri for stage in ("classifier", "demographic", "identity_encoder")
    }
    run = PoolRun(small, 0, bundles["ldm"].location.uri, judges)
    measured = {"seed": 0, **measure_pool(run)}

    invariant, dependent = measured["classifiers"]
    assert invariant["truth"]["verdict"] == "invariant"
    assert invariant["size"] == 0
    assert dependent["size"] > 1
    for name in GENERATORS:  # judges that have learned nothing open no gate, not even the renderer's
        assert {row["audits"][name]["verdict"] for row in measured["classifiers"]} == {"cannot_tell"}
        assert {gate["name"]: gate["state"] for gate in measured["gates"][name]}["judge_auroc"] == "closed"
    seen = dependent["audits"]["exact"]["pairs"]["compact digital"]["absolute"]
    assert seen == pytest.approx(dependent["truth"]["pairs"]["compact digital"]["absolute"], abs=0.05)
    assert set(invariant["tests"]) == set(TESTS)
    assert len(measured["levels"]) == 2
    assert 80 < sum(measured["levels"]) < 120
    json.dumps(measured, allow_nan=False)
    assert run.request("pool") == json.loads(json.dumps(run.request("pool")))
    assert Outcome(small, [measured]).report().render()


def test_the_size_of_an_effect_is_in_margins():
    truth = PairTruth(first="a", second="b", mean=-0.02, absolute=0.03, flip_rate=0.1, individuals=10)
    assert in_margins(truth, MarginConfig()) == pytest.approx(2.0)
    assert truth.verdict(MarginConfig()) == "depends"
    assert in_margins(replace(truth, flip_rate=0.0), MarginConfig()) == pytest.approx(0.6)


# Tables.


def row(truth, learned, *, kind="rerendered", p=0.5, absolute=0.2):
    def pair(verdict):
        return {"analog compact": {"verdict": verdict, "mean": 0.0, "absolute": absolute, "flip": 0.0}}

    said = {"exact": truth, "learned": learned, "untrained": "cannot_tell", "shuffled": "cannot_tell"}
    return {
        "name": f"{kind} scanner",
        "kind": kind,
        "strength": 0.0,
        "finding": "edema",
        "truth": {"verdict": truth, "pairs": pair(truth)},
        "size": 0.5,
        "audits": {name: {"verdict": verdict, "pairs": pair(verdict)} for name, verdict in said.items()},
        "tests": dict.fromkeys(TESTS, p),
    }


def measured(seed, *rows):
    gates = [{"name": "effectiveness", "value": 0.9}, {"name": "composition", "value": 0.01}]
    return {
        "seed": seed,
        "classifiers": list(rows),
        "gates": dict.fromkeys(GENERATORS, gates),
        "seconds": {"pool": 9.0},
    }


SEEDS = [
    measured(
        0,
        row("invariant", "invariant"),
        row("depends", "depends", p=0.01),
        row("depends", "invariant", kind="confounded"),
        row("invariant", "depends", kind="excluded", p=None),
        row("depends", "inconclusive", kind="excluded"),
    ),
    measured(1, row("invariant", "cannot_tell"), row("depends", "depends")),
]


def test_right_verdicts_are_counted_among_those_decided():
    learned = scores(SEEDS, 0.05)["learned"]
    assert learned[0] == Score(count=5, right=2, missed=1, alarms=1, inconclusive=1, cannot_tell=0, refused=0)
    assert (learned[0].decided, learned[0].accuracy) == (4, 0.5)
    assert learned[1].accuracy == 1.0
    assert total(learned).cannot_tell == 1
    assert Score.of([("depends", "cannot_tell")]).accuracy is None
    # A test's p-value decides every classifier that it is not refused: .01 is right, three of .5 are half.
    parity = scores(SEEDS, 0.05)["dp"][0]
    assert (parity.right, parity.missed, parity.refused) == (2, 2, 1)
    assert scores(SEEDS, 0.05, where=lambda each: each["kind"] == "excluded")["learned"][0].alarms == 1


def test_bars_are_means_over_seeds():
    found = {bar.name: bar for bar in bars(SEEDS, 0.05)}
    assert len(found) == 5
    accuracy = next(bar for name, bar in found.items() if name.startswith("Right verdicts"))
    assert accuracy.spread.mean == pytest.approx(0.75)
    assert not accuracy.met
    undecided = next(bar for name, bar in found.items() if "inconclusive" in name)
    assert undecided.spread.values == pytest.approx((0.2, 0.5))
    degraded = [bar for name, bar in found.items() if "untrained" in name or "drawn at random" in name]
    assert [bar.met for bar in degraded] == [True, True]


def test_mistakes_name_the_pair_that_is_furthest_off():
    wrong = mistakes(SEEDS, "learned")
    assert [each["verdict"] for each in wrong] == ["invariant", "depends"]
    assert wrong[0]["pair"] == "analog compact"
    assert mistakes(SEEDS, "exact") == []


def test_the_tables_are_plain_json_and_the_page_shows_them():
    outcome = Outcome(experiment(), SEEDS, facts={"Code version": "0"})
    again = json.loads(json.dumps(outcome.tables(), allow_nan=False))
    assert again["scores"]["learned"]["right"] == 3
    assert again["by_kind"]["confounded"]["learned"]["missed"] == 1
    assert again["gates"]["learned"]["effectiveness"]["mean"] == pytest.approx(0.9)
    page = outcome.report().render()
    for words in ("(a) Who is right about whom?", "(b) Where it is wrong", "(c) Gates", "(d) CPU time"):
        assert words in page
    assert np.isfinite(outcome.tables()["bars"][0]["mean"])
