"""Age in an audit: images at doses, what classifiers say of them, gates, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from counterray.audits.errors import AuditError
from counterray.config import ConfigError
from counterray.data.batching import read_batches
from counterray.data.phantom.render import exact_scm
from counterray.data.phantom.scm import pathology_variables
from counterray.data.phantom.studies import parents_of
from counterray.evaluation.exact_generator import ExactGenerator
from counterray.evaluation.metric import Judge
from counterray.models.mine_ldm.generator import AttributeGenerator, open_ldm
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.models.predictors.regressor import RegressorConfig, RegressorStage
from counterray.storage import resolve
from jobs.auditing.gating import gate_readings
from jobs.auditing.judging import Jury, judged
from jobs.auditing.planning import make_plan
from jobs.auditing.reporting import read_salt, report_of
from jobs.auditing.sets import ImageSet, SetChunk
from jobs.auditing.views import Views
from tests.audit_runs import CONSTANT, NAN, TINY, bundle_at, config, planned, run
from tests.audited_functions import aortic_arch
from tests.phantom_dataset import SIZE, write_dataset
from tests.small_mine_ldm import chain

ARCH, AIR = "tests.audited_functions:aortic_arch", "tests.audited_functions:air"
DOSES = (40.0, 55.0, 70.0)
WIDE = {"margins": {"mean_effect": 0.1, "absolute_effect": 0.1, "flip_rate": 0.1}}
"""Margins that 35 patients can keep: 0.9^35 = 0.025."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("doses") / "data", test=60)


def asked(dataset, folder, **settings):
    usual = {"attributes": ("age",), "classifiers": (ARCH,), "doses": {"age": DOSES}}
    return planned(dataset, folder, **(usual | settings))


def replanned(dataset, source, roll, chosen):
    """The plan with the generator that ``source`` was given."""
    return make_plan(dataset, source, roll, ("age",), chosen)


def arch_at(batch, ages):
    """Scores of the aortic arch, drawn by the phantom's own causal model at ages ``[N]``."""
    values = parents_of(batch)
    held = ("sex", "group", "site", "scanner", *pathology_variables())
    do = {name: values[name] for name in held} | {"age": torch.as_tensor(ages, dtype=torch.float64)}
    drawn = exact_scm(SIZE).counterfactual({"image": batch.image, **values}, do)["image"].float()
    return aortic_arch((drawn + 1) / 2)[:, 0].double().numpy()


def test_an_exact_audit_of_age_finds_the_true_dependence(dataset, tmp_path):
    plan, source, roll, chosen = asked(
        dataset,
        tmp_path,
        attributes=("age", "sex"),
        classifiers=(ARCH, AIR, NAN, CONSTANT),
        audit=WIDE,
    )
    result, (made, judgements, scored) = run(plan, source, roll, chosen)
    assert len(made) == len(judgements) == 4 * 2
    assert not any(answer["error"] for answer in scored)
    assert list(result.attributes) == ["sex"]
    results = result.doses["age"]
    assert (results.individuals, results.audit.doses, results.audit.unit) == (60, DOSES, "years")
    findings = {finding.target.classifier: finding for finding in results.audit.findings}

    [batch] = read_batches(dataset, "test", batch_size=60)
    truth = np.stack([arch_at(batch, np.full(60, dose)) for dose in DOSES], axis=-1)
    arch = findings[ARCH]
    assert arch.verdict == "depends"
    np.testing.assert_allclose(
        [point.value for point in arch.curve], (truth - truth[:, :1]).mean(axis=0), atol=1e-6
    )
    assert arch.slope.value == pytest.approx((truth[:, 2] - truth[:, 0]).mean() / 30, abs=1e-6)
    flips = [((truth[:, a] >= 0.5) != (truth[:, b] >= 0.5)).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert [pair.flips.value for pair in arch.pairs] == pytest.approx(flips)
    assert (arch.widest.first, arch.widest.second) == (40, 70)

    air = findings[AIR]
    assert air.verdict == "invariant"
    assert {(pair.mean.value, pair.flips.value) for pair in air.pairs} == {(0, 0)}
    assert air.p_equivalence == pytest.approx(0.9**results.patients)

    assert "no finite numbers" in results.audit.refused[f"{NAN}, atelectasis"]
    assert "at all doses" in results.audit.refused[f"{CONSTANT}, edema"]
    assert {gate.state for gate in results.audit.gates} == {"waived"}
    assert result.verdicts()["age"][f"{AIR}, cardiomegaly"] == "invariant"

    again, done = run(plan, source, roll, chosen)
    assert done == ([], [], [])
    first, second = (
        report_of(each, plan, source, Jury({}, source), chosen, salt=read_salt(resolve(tmp_path)))
        for each in (result, again)
    )
    assert first.as_json() == second.as_json()
    page, said, told = first.html(), first.as_json(), first.markdown()
    json.dumps(said, allow_nan=False)
    [dose] = said["doses"]
    assert [each["attribute"] for each in said["attributes"]] == ["sex"]
    assert dose["doses"] == [40, 55, 70]
    for finding in dose["findings"]:
        assert finding["sentence"] in page
    assert "Age: how scores follow it" in page
    assert "age, dose and response" in told
    for text in (page, told):
        assert "no finite numbers" in text
    assert said["title"] == "Counterfactual audit: sex, age"
    names = {*plan.observed.studies["patient_id"].to_pylist(), *plan.observed.studies["image_id"].to_pylist()}
    assert not any(name in page + told + json.dumps(said) for name in names)


def test_the_image_at_the_own_age_is_the_observed_one(dataset, tmp_path):
    """The exact generator has no seed: one null intervention, which is the own dose again."""
    plan, source, roll, chosen = asked(dataset, tmp_path, studies=20)
    run(plan, source, roll, chosen)
    images = plan.attributes["age"]
    assert images.views.names == ("dose0", "dose1", "dose2", "own", "null0")
    shown = source.read(images.chunks[0])
    observed = source.read(plan.observed.chunks[0])["observed"]
    torch.testing.assert_close(shown["own"], observed, atol=1e-6, rtol=0)
    torch.testing.assert_close(shown["null0"], shown["own"])
    assert (shown["dose2"] != shown["dose0"]).flatten(1).any(dim=1).all()


class Noisy(ExactGenerator):
    """The exact generator with noise that the seed fixes."""

    def __init__(self, manifest):
        super().__init__(manifest)
        self.seeded = True

    def edit(self, batch, edit, *, seeds, donor=None):
        made = super().edit(batch, edit, seeds=seeds, donor=donor)
        for row, seed in enumerate(seeds.tolist()):
            made[row] += 0.1 * torch.randn(made[row].shape, generator=torch.Generator().manual_seed(seed))
        return made.clamp(-1, 1)


def test_a_seeded_generator_has_more_null_interventions(dataset, tmp_path):
    _, source, roll, chosen = asked(dataset, tmp_path, studies=20, null_interventions=2)
    source._generator = Noisy(dataset.manifest)
    plan = replanned(dataset, source, roll, chosen)
    result, _ = run(plan, source, roll, chosen)
    images = plan.attributes["age"]
    assert images.views.names == ("dose0", "dose1", "dose2", "own", "null0", "null1")
    shown = source.read(images.chunks[0])
    observed = source.read(plan.observed.chunks[0])["observed"]
    noise = {view: shown[view] - observed for view in ("own", "null0", "null1")}
    inside = observed.abs() < 0.5
    assert all(each[inside].std() == pytest.approx(0.1, abs=0.01) for each in noise.values())
    assert np.corrcoef([each[inside].numpy() for each in noise.values()])[0, 1:] == pytest.approx(0, abs=0.1)
    gates = {gate.name: gate for gate in result.doses["age"].audit.gates}
    assert gates["composition"].value == pytest.approx(float(noise["own"].abs().mean()) / 2, abs=0.02)


# gates


def test_a_regressor_measures_whether_the_age_was_set(dataset, tmp_path):
    stages = (
        RegressorStage(RegressorConfig(backbone=TINY)),
        ClassifierStage(ClassifierConfig(backbone=TINY)),
    )
    judges = [bundle_at(tmp_path / stage.name, dataset, stage).location.uri for stage in stages]
    result, _ = run(*asked(dataset, tmp_path, studies=20), judges=judges)
    gates = {gate.name: gate for gate in result.doses["age"].audit.gates}
    assert gates["effectiveness"].judge.startswith("regressor")
    assert 0 <= gates["effectiveness"].value <= 1
    assert gates["judge_auroc"].note == "share of pairs of observed images that it orders rightly"
    assert gates["composition"].value == pytest.approx(0, abs=1e-6)
    assert gates["off_target"].judge.startswith("classifier")
    assert gates["identity"].reading is None
    sex, _ = run(*asked(dataset, tmp_path, attributes=("sex",), studies=20), judges=judges)
    unread = {gate.name: gate for gate in sex.attributes["sex"].effect.gates}
    assert unread["effectiveness"].reading is None, "years are no level of sex"


def test_what_a_regressor_says_by_hand():
    """It reads the first pixel in decades; a measurement stands beside the age."""
    regressor = Judge(
        name="regressor",
        checksum="1",
        predict=lambda image: torch.stack([image[:, 0, 0, 0] * 0, image[:, 0, 0, 0] * 10], dim=1),
        outputs=("area", "age"),
    )
    image = torch.tensor([4.0, 7.0]).reshape(2, 1, 1, 1)
    views = Views("age", nulls=1, doses=(40.0, 70.0))
    said = judged({"regressor": regressor}, {}, image, views=views, observed=image, null=image)
    assert said["read"].tolist() == [[40], [70]]
    without = judged(
        {"regressor": replace(regressor, outputs=("area", "height"))},
        {},
        image,
        views=views,
        observed=image,
        null=image,
    )
    assert set(without) == {"composition"}


def test_readings_of_doses_by_hand():
    """Four studies of 40, 50, 60 and 70 years at 40 and at 70 years; the first is at 40 already."""
    studies = pa.table(
        {
            "attribute.age": [40.0, 50.0, 60.0, 70.0],
            "number": [0, 1, 2, 3],
            "patient_id": ["p", "q", "r", "s"],
        }
    )
    chunk = SetChunk("c", "p", Views("age", nulls=1, doses=(40.0, 70.0)), studies)
    assert chunk.views.judged == ("observed", "dose0", "dose1", "own")
    words = {
        "composition": np.array([[0] * 4, [9] * 4, [9] * 4, [0.1, 0.3, 0.2, 0.2]]),
        # At 40 of the other three 0.3, at 70 of the other three 0.1; a study at its own dose does not count.
        "findings": np.array([[0.0] * 4, [9, 0.3, 0.2, 0.4], [0.1, 0.1, 0.1, 9], [0.0] * 4])[..., None],
        # The middle of 40 and 70 is 55. At 40: 54 is read as 40, 56 and 80 are not.
        "read": np.array([[45, 44, 60, 61], [90, 54, 56, 80], [70, 60, 99, 0], [0.0] * 4])[..., None],
    }
    labels = {"regressor": "r", "classifier": "c"}
    settings = {"findings": ("edema",), "kept": range(4)}
    found = {one.gate: one for one in gate_readings(words, ImageSet((chunk,), studies), labels, **settings)}
    assert found["composition"].value == pytest.approx(0.2)
    assert (found["off_target"].value, found["off_target"].note) == (pytest.approx(0.3), "edema, worst at 40")
    assert (found["effectiveness"].value, found["effectiveness"].images) == (pytest.approx(1 / 3), 3)
    assert (found["effectiveness"].judge, found["effectiveness"].note) == ("r", "worst at 40")
    # Of six pairs one is in the wrong order: 45 at 40 years, 44 at 50.
    assert found["judge_auroc"].value == pytest.approx(5 / 6)
    del words["read"]
    without = gate_readings(words, ImageSet((chunk,), studies), labels, **settings)
    assert {one.gate for one in without} == {"composition", "off_target"}


# what is refused


@pytest.mark.parametrize(
    ("attribute", "doses", "message"),
    [
        (
            "age",
            None,
            r"'age' is continuous: doses.age has to say where it is compared, such as --set doses.age",
        ),
        ("age", [40, 119], r"doses.age names 119 years; the audited studies have [\d.]+ to [\d.]+ years"),
        ("age", [1, 40, 119], "doses.age names 1, 119 years"),
        (
            "wings",
            None,
            "'wings' is unknown. Attributes of the data: sex, group, site, scanner, view; .*: age",
        ),
    ],
)
def test_doses_that_the_data_cannot_follow(dataset, tmp_path, attribute, doses, message):
    settings = {} if doses is None else {"doses": {"age": doses}}
    plan, *_ = planned(dataset, tmp_path, attributes=(attribute, "sex"), **settings)
    assert list(plan.attributes) == ["sex"], "the others go on"
    with pytest.raises(AuditError, match=message):
        raise AuditError(plan.refused[attribute])


@pytest.mark.parametrize(
    ("doses", "message"),
    [
        ({"age": [40]}, r"doses.age = \[40\]: a response needs two or more doses, ascending"),
        ({"age": [60, 40]}, r"doses.age = \[60, 40\].*ascending"),
        ({"age": [40, 40]}, r"doses.age = \[40, 40\].*ascending"),
        ({"age": [40, float("nan")]}, r"doses.age = \[40, nan\]"),
        ({"age": ["old", 60]}, "age.0: Input should be a valid number"),
        ({"sex": [0, 1]}, r"doses.sex: doses are for continuous attributes \(age\).*levels.sex says"),
        ({"wings": [0, 1]}, r"doses.wings: doses are for continuous attributes \(age\)"),
    ],
)
def test_doses_that_are_refused_before_anything_is_read(doses, message):
    with pytest.raises(ConfigError, match=message):
        config(doses=doses)


def test_too_few_patients_of_known_age(dataset, tmp_path):
    plan, *_ = asked(dataset, tmp_path, audit={"minimum_patients": 50})
    assert "patients; audit.minimum_patients = 50 are needed" in plan.refused["age"]


def test_a_generator_that_cannot_set_the_age_says_so(dataset, tmp_path):
    only = {"attributes": ("sex",)}
    bundle = chain(tmp_path / "mine_ldm", steps=1, perturbation=only, ldm=only)["ldm"]
    _, source, roll, chosen = asked(dataset, tmp_path)
    source._generator = AttributeGenerator(open_ldm(bundle))
    plan = replanned(dataset, source, roll, chosen)
    assert plan.refused["age"] == "do age: no such attribute. Attributes that can be set: sex."
    exact = ExactGenerator(dataset.manifest)
    exact.ranges = {"age": (45.0, 100.0)}
    source._generator = exact
    plan = replanned(dataset, source, roll, chosen)
    assert plan.refused["age"] == "do age=40.0: age can be set to 45 to 100."
