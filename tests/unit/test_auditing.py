"""What an audit asks about, keeps, refuses and counts: all that needs no Ray."""

import json
import shutil

import numpy as np
import pytest
import torch

from counterray.audits.classifiers.contract import ClassifierError
from counterray.audits.errors import AuditError
from counterray.models.mine_ldm.generator import AttributeGenerator, open_ldm
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.models.predictors.demographic import DemographicConfig, DemographicStage
from counterray.models.predictors.identity import IdentityEncoderConfig, IdentityEncoderStage
from counterray.storage import resolve
from jobs.ancestry import trained_on
from jobs.auditing.candidates import open_candidates
from jobs.auditing.export import TEMPLATE_FILE, export_images
from jobs.auditing.gating import gate_readings
from jobs.auditing.judging import Jury
from jobs.auditing.making import Source
from jobs.auditing.planning import judge_bundles
from jobs.auditing.reporting import read_salt, report_of
from jobs.auditing.representation import cit_lr_beside, read_representation
from jobs.auditing.scoring import Scorer, read_scores
from jobs.auditing.sets import ImageSet, SetChunk, counterfactual_set, labels_of, study_table
from jobs.auditing.views import Views
from jobs.auditing.work import Hands, Work
from jobs.generation.request import GenerationError
from jobs.generation.selection import read_batch
from tests.audit_runs import BIRDS, BRIGHT, CONSTANT, FAILING, NAN, TINY, bundle_at, config, planned, run
from tests.phantom_dataset import write_dataset
from tests.small_mine_ldm import chain


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("auditing") / "data", test=60, validation=40)


# sets


def test_more_studies_leave_earlier_chunks_as_they_are(dataset):
    few, all_of_them = (
        counterfactual_set(
            dataset,
            study_table(dataset, "test", limit=limit),
            attribute="sex",
            identity={"generator": "g"},
            nulls=2,
            config=config(),
        )
        for limit in (32, None)
    )
    assert [chunk.name for chunk in few.chunks] == [chunk.name for chunk in all_of_them.chunks][:2]
    assert len(all_of_them.chunks) == 4
    assert len(all_of_them.studies) == 60
    assert all_of_them.views.names == ("level0", "level1", "null0", "null1")


def test_names_of_images_hold_no_identifier_and_follow_the_generator(dataset):
    studies = study_table(dataset, "test", limit=None)

    def of(identity, **settings):
        return counterfactual_set(
            dataset, studies, attribute="sex", identity=identity, nulls=1, config=config(**settings)
        )

    first = of({"generator": "g"}).chunks[0]
    keys = first.keys("level1")
    assert all(key.startswith("sex-") and key.endswith("-level1") for key in keys)
    assert not any(name in key for key in keys for name in studies["image_id"].to_pylist())
    for other in (of({"generator": "h"}), of({"generator": "g"}, seed=1)):
        assert set(other.chunks[0].keys("level1")).isdisjoint(keys)
        assert other.chunks[0].name != first.name


@pytest.mark.parametrize(
    ("attribute", "settings", "message"),
    [
        ("view", {}, r"'view' has 1 level\(s\) here \(PA\)"),
        ("age", {}, r"'age' is continuous: doses.age .*--set doses.age=\[[\d.]+,[\d.]+,[\d.]+\].*years"),
        ("wings", {}, "'wings' is unknown. Attributes of the data: sex, group.*; continuous.*: age"),
        ("race", {}, r"'race' has 0 level\(s\)"),
        ("sex", {"levels": {"sex": ["male"]}}, r"1 level\(s\) here \(male\)"),
        ("sex", {"levels": {"sex": ["male", "x"]}}, "levels.sex names x"),
        (
            "scanner",
            {"audit": {"minimum_patients": 10}},
            r"1 level\(s\) with patients enough.*digital 29.*audit.minimum_patients = 10",
        ),
    ],
)
def test_attributes_that_cannot_be_audited(dataset, attribute, settings, message):
    with pytest.raises(AuditError, match=message):
        counterfactual_set(
            dataset,
            study_table(dataset, "test", limit=None),
            attribute=attribute,
            identity={},
            nulls=1,
            config=config(**settings),
        )


def test_studies_at_levels_that_are_not_compared_are_left_out(dataset):
    studies = study_table(dataset, "test", limit=None)
    found = counterfactual_set(
        dataset,
        studies,
        attribute="group",
        identity={},
        nulls=1,
        config=config(levels={"group": ["b", "a"]}),
    )
    assert set(found.studies["attribute.group"].to_pylist()) == {"a", "b"}
    assert found.views.levels == ("b", "a")


def test_a_fold_has_its_patients_only(dataset):
    parts = [study_table(dataset, "test", limit=None, fold=fold)["number"].to_pylist() for fold in "ab"]
    assert sorted(parts[0] + parts[1]) == list(range(60))
    assert min(map(len, parts)) > 0


def test_labels_are_known_or_nan(dataset):
    studies = study_table(dataset, "test", limit=None)
    assert set(labels_of(studies, "cardiomegaly")) == {0.0, 1.0}
    assert np.isnan(labels_of(studies, "sparrow")).all()


# the whole of it, without Ray


def test_an_exact_audit_end_to_end_and_nothing_done_twice(dataset, tmp_path):
    plan, source, roll, chosen = planned(
        dataset, tmp_path, attributes=("sex", "view", "scanner"), classifiers=(BRIGHT, CONSTANT, NAN, BIRDS)
    )
    result, (made, judged, scored) = run(plan, source, roll, chosen)
    assert len(made) == len(judged) == 4 * len(plan.attributes)
    assert not any(answer["error"] for answer in scored)
    audit = result.attributes["sex"]
    said = audit.effect.as_json()
    assert said["null_interventions"] == 1, "the exact generator has no seed"
    assert {gate["state"] for gate in said["gates"]} == {"waived"}
    assert "'view' has 1 level" in result.refused["attributes"]["view"]
    assert "none of them is among" in result.refused["classifiers"][BIRDS]
    assert f"{CONSTANT}, edema" in said["refused"]
    assert "no finite numbers" in said["refused"][f"{NAN}, atelectasis"]
    assert f"{NAN}, edema" in said["verdicts"], "its other target goes on"
    rows = np.arange(len(audit.scores))
    own = audit.scores.intervened[:, rows, audit.scores.own]
    kept = [row for row, target in enumerate(audit.scores.targets) if "edema" in target.finding]
    np.testing.assert_allclose(own[kept], audit.scores.observed[kept], atol=1e-6)
    np.testing.assert_array_equal(own[kept], audit.scores.placebo[kept, :, 0])

    again, done = run(plan, source, roll, chosen)
    assert done == ([], [], [])
    first, second = (
        report_of(each, plan, source, Jury({}, source), chosen, salt=read_salt(resolve(tmp_path)))
        for each in (result, again)
    )
    assert first.html() == second.html()
    assert first.as_json() == second.as_json()


def test_the_report_has_all_of_it_and_names_nobody(dataset, tmp_path):
    plan, source, roll, chosen = planned(
        dataset,
        tmp_path,
        attributes=("sex", "view"),
        classifiers=(BRIGHT, NAN, BIRDS),
        causes={"parents": {"image": ["sex", "heart"], "heart": ["sex"]}, "legitimate": {"heart": "anatomy"}},
    )
    result, _ = run(plan, source, roll, chosen)
    report = report_of(result, plan, source, Jury({}, source), chosen, salt=read_salt(resolve(tmp_path)))
    page, said, told = report.html(), report.as_json(), report.markdown()
    json.dumps(said, allow_nan=False)
    [attribute] = said["attributes"]
    for finding in attribute["audits"][0]["findings"]:
        assert finding["sentence"] in page
    assert {each["test"] for each in attribute["associations"]} >= {"demographic_parity", "equalised_odds"}
    assert "CIT-LR is not among them: it needs a representation" in page
    assert page.count("data:image/png;base64,") >= 4 * 3
    assert len(attribute["examples"]) == 8
    assert attribute["performance"][f"{BRIGHT}, edema"]["by_level"].keys() == {"female", "male"}
    assert attribute["causes"]["paths"][1]["reason"] == "anatomy"
    for text in (page, told):
        assert "view" in text
        assert "none of them is among" in text
        assert "no finite numbers" in text
        assert dataset.manifest.fingerprint in text
    assert said["bundles"][f"classifier {BRIGHT} (function)"] == roll.candidates[0].fingerprint
    assert f"Thresholds of {BRIGHT}" in page
    assert said["refused"]["classifiers"][BIRDS] in result.refused["classifiers"][BIRDS]
    studies = plan.observed.studies
    names = {*studies["patient_id"].to_pylist(), *studies["image_id"].to_pylist()}
    assert not any(f">{name}<" in page or f" {name}" in told for name in names)
    assert not any(name in json.dumps(said["attributes"]) for name in names if len(name) > 6)


def test_cit_lr_stands_beside_where_the_generator_has_a_representation(dataset, tmp_path):
    """A small mine_ldm, hardly trained: what is tested is that its T(u) arrives, row by row."""
    only = {"attributes": ("sex",)}
    bundle = chain(tmp_path / "mine_ldm", steps=1, perturbation=only, ldm=only)["ldm"]
    model = open_ldm(bundle)
    plan, source, roll, chosen = planned(dataset, tmp_path, null_interventions=1)
    source._generator = AttributeGenerator(model)
    result, _ = run(plan, source, roll, chosen)
    audit = result.attributes["sex"]
    made = cit_lr_beside(
        audit.scores, source.open(), audit.images, chosen.audit, kept=audit.kept, cache=source.cache
    )
    assert made.rows == 60
    assert len(made.delta) == len(audit.scores.targets)
    first = read_batch(dataset, audit.images.chunks[-1].studies)
    pooled = torch.nn.functional.adaptive_avg_pool2d(model.encode(first.image), 2).flatten(1)
    kept = read_representation(source.cache, audit.images)
    np.testing.assert_allclose(kept[-len(pooled) :], pooled.detach().numpy(), atol=1e-6)
    report = report_of(result, plan, source, Jury({}, source), chosen, salt=read_salt(resolve(tmp_path)))
    [attribute] = report.as_json()["attributes"]
    assert {each["test"] for each in attribute["associations"]} >= {"cit_lr", "cit_lr_orthogonal"}
    assert attribute["without_cit_lr"] == ""


def test_another_audit_of_the_same_cache_makes_no_image_again(dataset, tmp_path):
    run(*planned(dataset, tmp_path))
    more = planned(dataset, tmp_path, classifiers=(BRIGHT, NAN), audit={"alpha": 0.01})
    _, (made, judged, scored) = run(*more)
    assert (made, judged) == ([], [])
    assert {answer["classifier"] for answer in scored} == {NAN}


def test_a_failing_classifier_is_not_asked_again_and_loses_nobody_else(dataset, tmp_path):
    plan, source, roll, _ = planned(dataset, tmp_path, classifiers=(BRIGHT, FAILING))
    jury = Jury({}, source)
    work = Work(source, jury, list(plan.attributes.values()), plan.observed, plan.validation)
    hands = Hands(source, Scorer(source, ()), jury)
    for piece in work.images():
        hands(piece)
    answers = [hands(piece) for piece in work.scores(roll.candidates)]
    errors = {answer["error"] for answer in answers if answer["classifier"] == FAILING}
    assert errors == {f"Classifier {FAILING!r} failed on 16 images: ZeroDivisionError: division by zero"}
    assert not any(answer["error"] for answer in answers if answer["classifier"] == BRIGHT)
    assert {piece.candidate.name for piece in work.scores(roll.candidates)} == {FAILING}


def test_thresholds_are_chosen_on_validation_studies(dataset, tmp_path):
    described = {"kind": "function", "function": BRIGHT, "name": "bright", "findings": ["cardiomegaly", "x"]}
    file = tmp_path / "bright.yaml"
    file.write_text(json.dumps({**described, "threshold": {"method": "youden"}}))
    plan, source, roll, chosen = planned(dataset, tmp_path, classifiers=(str(file), BRIGHT))
    result, _ = run(plan, source, roll, chosen)
    [target] = result.targets["bright"]
    [candidate] = [one for one in roll.candidates if one.name == "bright"]
    scores = read_scores(source.cache, candidate, plan.validation)[0][:, 0]
    assert scores.min() < target.threshold < scores.max()
    assert {target.threshold for target in result.targets[BRIGHT]} == {0.5}
    assert len(scores) == 40


def test_a_threshold_that_cannot_be_chosen_costs_its_target_only(dataset, tmp_path):
    described = {"kind": "function", "function": BRIGHT, "findings": ["cardiomegaly", "sparrow"]}
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({**described, "threshold": {"method": "youden"}}))
    names = ["cardiomegaly", "sparrow"]
    plan, source, roll, chosen = planned(dataset, tmp_path, classifiers=(str(file),), findings=names)
    result, _ = run(plan, source, roll, chosen)
    assert "0 validation studies" in result.refused["targets"][f"{BRIGHT}, sparrow"]
    assert list(result.attributes["sex"].effect.verdicts()) == [f"{BRIGHT}, cardiomegaly"]


def test_findings_that_the_data_do_not_label_are_audited_where_they_are_asked_for(dataset, tmp_path):
    plan, source, roll, chosen = planned(dataset, tmp_path, classifiers=(BIRDS,), findings=["sparrow"])
    assert roll.candidates[0].audited == ("sparrow",)
    result, _ = run(plan, source, roll, chosen)
    assert "the score is 0.5 for all" in result.refused["attributes"]["sex"]


# export and predictions made elsewhere


def test_predictions_made_elsewhere_give_the_same_audit(dataset, tmp_path):
    plan, source, roll, chosen = planned(dataset, tmp_path)
    result, _ = run(plan, source, roll, chosen)
    target = resolve(tmp_path / "export")
    number = export_images(target, source, plan.sets, findings=("edema", "atelectasis"))
    assert number == 60 + 60 * 3
    lines = (tmp_path / "export" / TEMPLATE_FILE).read_text().splitlines()
    assert lines[0] == "image,edema,atelectasis"
    assert len(lines) == 1 + number
    shown = [(tmp_path / "export" / f"{line.split(',')[0]}.png").is_file() for line in lines[1:]]
    assert all(shown)
    from counterray.audits.classifiers.function import FunctionClassifier, FunctionConfig
    from counterray.data.dicom import decode_any

    classifier, rows = FunctionClassifier(FunctionConfig(function=BRIGHT)), ["image,edema,atelectasis"]
    for name in [line.split(",")[0] for line in lines[1:]]:
        image = torch.from_numpy(decode_any((tmp_path / "export" / f"{name}.png").read_bytes()))
        [(first, second)] = classifier.scores(image[None, None] * 2 - 1, keys=[name]).tolist()
        rows.append(f"{name},{first!r},{second!r}")
    (tmp_path / "elsewhere.csv").write_text("\n".join(rows))
    again, _ = run(*planned(dataset, tmp_path, classifiers=(str(tmp_path / "elsewhere.csv"),)))
    ours, theirs = (one.attributes["sex"].scores for one in (result, again))
    np.testing.assert_allclose(ours.intervened, theirs.intervened, atol=1e-6)
    np.testing.assert_allclose(ours.observed, theirs.observed, atol=1e-6)


# training patients, judges, gates


def test_a_classifier_that_knows_the_patients_is_refused_or_told(tmp_path):
    data = write_dataset(tmp_path / "data", train=40)
    stage = ClassifierStage(ClassifierConfig(backbone=TINY))
    bundle = bundle_at(tmp_path / "c" / "bundle", data, stage, loader={"fold": "a"})
    facts = {"fingerprint": "f", "split": "train"}
    assert trained_on(bundle, **{**facts, "split": "test"}, fold="all") == ""
    assert trained_on(bundle, **facts, fold="b") == ""
    assert "on patients that it knows" in trained_on(bundle, **facts, fold="all")
    assert "cannot be told" in trained_on(bundle, **{**facts, "fingerprint": "g"}, fold="a")
    uri = bundle.location.uri
    refused = open_candidates([uri], data, config(split="train"))
    assert "training_patients=warn" in refused.refused["c"]
    warned = open_candidates([uri], data, config(split="train", training_patients="warn"))
    assert [one.name for one in warned.candidates] == ["c"]
    assert "numbers flatter it" in warned.warnings[0]
    assert open_candidates([uri], data, config(split="train", fold="b")).warnings == []


def test_two_classifiers_of_one_name(dataset):
    with pytest.raises(ClassifierError, match="Two classifiers are called"):
        open_candidates([BRIGHT, BRIGHT], dataset, config())


def test_total_effects_need_the_exact_generator(dataset, tmp_path):
    bundle = bundle_at(tmp_path / "b", dataset, ClassifierStage(ClassifierConfig(backbone=TINY)))
    with pytest.raises(GenerationError, match="effect = total"):
        Source(bundle, dataset, config(effect="total"), resolve(tmp_path)).open()
    with pytest.raises(GenerationError, match="edits no images"):
        Source(bundle, dataset, config(), resolve(tmp_path)).open()


def test_judges_measure_all_gates(dataset, tmp_path):
    stages = (
        DemographicStage(DemographicConfig(backbone=TINY, attributes=("sex", "scanner"))),
        ClassifierStage(ClassifierConfig(backbone=TINY)),
        IdentityEncoderStage(IdentityEncoderConfig(backbone=TINY)),
    )
    judges = [bundle_at(tmp_path / stage.name, dataset, stage).location.uri for stage in stages]
    plan, source, roll, chosen = planned(dataset, tmp_path)
    result, _ = run(plan, source, roll, chosen, judges=judges)
    gates = {gate.name: gate for gate in result.attributes["sex"].effect.gates}
    assert gates["composition"].value == 0
    assert gates["composition"].judge is None
    for name, judge in (("identity", "identity_encoder"), ("effectiveness", "demographic")):
        assert gates[name].judge.startswith(judge)
        assert np.isfinite(gates[name].value)
    assert 0 <= gates["judge_auroc"].value <= 1
    assert gates["off_target"].value > 0
    with pytest.raises(ValueError, match="One judge of each"):
        judge_bundles([judges[0], judges[0]], None)


def test_readings_by_hand():
    """Two studies of each of two levels; the worst level decides."""
    import pyarrow as pa

    studies = pa.table(
        {"attribute.sex": ["f", "f", "m", "m"], "number": [0, 1, 2, 3], "patient_id": ["p", "q", "r", "s"]}
    )
    chunk = SetChunk("c", "p", Views("sex", ("f", "m"), 1), studies)
    judged = {
        "composition": np.array([[0] * 4, [0.1, 0.3, 9, 9], [9, 9, 0.2, 0.2]]),
        "identity": np.array([[1] * 4, [0, 0, 0.9, 0.7], [0.6, 0.8, 0, 0]]),
        # Two findings: 0.2 and 0.35 at the first level, 0.1 and 0 at the second.
        "findings": np.array(
            [
                [[0.0, 0.0]] * 4,
                [[0, 0], [0, 0], [0.1, 0.4], [0.3, 0.3]],
                [[0.1, 0], [0.1, 0], [0, 0], [0, 0]],
            ]
        ),
        "others": np.array([[0] * 4, [0, 0, 0.0, 0.0], [0.5, 0.1, 0, 0]]),
        "read": np.array(
            [
                [[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]],
                [[1, 0], [1, 0], [1, 0], [0, 1]],
                [[0, 1], [0, 1], [0, 1], [0, 1]],
            ]
        ),
    }
    labels = {"identity_encoder": "i", "classifier": "c", "demographic": "d"}
    settings = {"findings": ("edema", "atelectasis"), "kept": range(4)}
    found = {one.gate: one for one in gate_readings(judged, ImageSet((chunk,), studies), labels, **settings)}
    assert found["composition"].value == pytest.approx(0.2)
    assert (found["composition"].images, found["effectiveness"].images) == (4, 2)
    # 0.1, 0.3, 0.2, 0.2: standard deviation 0.0816, t of 3 degrees of freedom.
    assert found["composition"].high == pytest.approx(0.2 + 3.182 * 0.08165 / 2, abs=1e-4)
    # One of two, exactly: of Clopper and Pearson, with patients that vary counted as one less.
    assert found["effectiveness"].low < 0.03
    assert found["effectiveness"].high > 0.97
    assert (found["identity"].value, found["identity"].note) == (pytest.approx(0.7), "worst at m")
    assert (found["off_target"].value, found["off_target"].judge) == (pytest.approx(0.35), "c")
    assert found["off_target"].note == "atelectasis, worst at f"
    assert (found["effectiveness"].value, found["effectiveness"].note) == (0.5, "worst at f")
    assert found["judge_auroc"].value == pytest.approx(0.75)
    judged["others"][2] = [0.9, 0.1, 0, 0]
    found = {one.gate: one for one in gate_readings(judged, ImageSet((chunk,), studies), labels, **settings)}
    assert (found["off_target"].value, found["off_target"].judge) == (pytest.approx(0.5), "d")
    without = gate_readings(
        {"composition": judged["composition"]}, ImageSet((chunk,), studies), {}, **settings
    )
    assert [one.gate for one in without] == ["composition"]


# beside it


def test_a_study_whose_image_could_not_be_made_is_left_out(dataset, tmp_path):
    plan, source, roll, chosen = planned(dataset, tmp_path)
    generator = source.open()
    exact = generator.edit

    def broken(batch, edit, **more):
        made = exact(batch, edit, **more)
        made[0] = torch.nan
        return made

    generator.edit = broken
    result, _ = run(plan, source, roll, chosen)
    audit = result.attributes["sex"]
    assert len(audit.scores) == len(audit.kept) < 60
    assert any("could not make every image" in warning for warning in result.warnings)
    assert np.isfinite(audit.scores.intervened).all()


def test_a_damaged_cache_is_told(dataset, tmp_path):
    from counterray.storage import StorageError

    plan, source, roll, chosen = planned(dataset, tmp_path)
    run(plan, source, roll, chosen)
    [first, *_] = sorted((tmp_path / "cache" / "images").iterdir())
    first.write_bytes(first.read_bytes()[:50])
    with pytest.raises(StorageError, match=r"is damaged.*Delete it and run again"):
        run(plan, source, roll, chosen)
    shutil.rmtree(tmp_path / "cache" / "images")
    _, (made, _, _) = run(plan, source, roll, chosen)
    assert len(made) == 4
