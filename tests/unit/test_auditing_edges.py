"""What an audit sets aside, refuses and exports: the job itself, with its work done in this process."""

import html
import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from counterray.audits.errors import AuditError
from counterray.config import validate
from jobs import common
from jobs.__main__ import app
from jobs.auditing import job
from jobs.auditing.export import TEMPLATE_FILE
from jobs.auditing.request import AuditJobConfig
from tests.phantom_dataset import write_dataset

BRIGHT, NAN, CONSTANT, PERCENT, FAILING, BIRDS = (
    f"tests.audited_functions:{name}"
    for name in ("brightness", "not_a_number", "constant", "in_percent", "failing", "of_birds")
)
SETTINGS = {"chunk_studies": 16, "audit": {"minimum_patients": 4, "resamples": 200, "permutations": 199}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("edges") / "data", test=60)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Images that tests of the same settings share."""
    return str(tmp_path_factory.mktemp("edges") / "cache")


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Pieces of work are done here, in order, without Ray."""

    @contextmanager
    def workers(make, config, *, at_most):
        work = make()
        yield lambda pieces: map(work, pieces)

    monkeypatch.setattr(job, "workers", workers)
    monkeypatch.setattr("jobs.audit.connect", lambda address: None)


@pytest.fixture
def audit(dataset, cache, tmp_path):
    """The job on the small dataset; its folder is ``tmp_path / "out"``."""

    def run(*classifiers, attributes=("sex",), out="out", minimum=4, **settings):
        asked = {**SETTINGS, **settings, "audit": {**SETTINGS["audit"], "minimum_patients": minimum}}
        return job.audit(
            validate(AuditJobConfig, asked),
            classifiers=classifiers,
            generator="exact",
            data=dataset.location.uri,
            attributes=attributes,
            judges=[],
            out=str(tmp_path / out),
            cache=cache,
        )

    return run


@pytest.fixture
def command(dataset, cache, tmp_path):
    """``python -m jobs audit`` on the small dataset; returns its result."""

    def run(*classifiers, attributes=("sex",), more=()):
        places = ["--data", dataset.location.uri, "--out", str(tmp_path / "out"), "--cache", cache]
        words = [word for name in classifiers for word in ("--classifier", name)]
        words += [word for name in attributes for word in ("--attribute", name)]
        settings = [
            "chunk_studies=16",
            *(f"audit.{name}={value}" for name, value in SETTINGS["audit"].items()),
        ]
        words += [word for text in (*settings, *more) for word in ("--set", text)]
        return CliRunner().invoke(app, ["audit", "--generator", "exact", *places, *words])

    return run


def written(tmp_path):
    return json.loads((tmp_path / "out" / "audit.json").read_text())


# Export first, audit later.


def test_a_set_is_exported_without_any_classifier_and_its_table_is_audited_later(audit, command, tmp_path):
    exported = command(more=["export=true"])
    assert exported.exit_code == 0, exported.stderr
    folder = tmp_path / "out" / "export"
    assert f"exported: 240 images in {folder}" in exported.stdout
    assert "--classifier <copy>.csv" in exported.stdout
    assert len(list(folder.glob("*.png"))) == 240
    assert not (tmp_path / "out" / "report.html").exists()

    predictions(folder / TEMPLATE_FILE, tmp_path / "elsewhere.csv")
    result = audit(str(tmp_path / "elsewhere.csv"))
    assert set(result["verdicts"]["sex"]) == {"elsewhere, edema", "elsewhere, atelectasis"}
    assert result["incomplete"] == []
    assert (result["export"], result["exported"]) == ("", 0)
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_export_of_which_nothing_is_left_is_an_error(audit):
    with pytest.raises(AuditError, match="'view' has 1 level"):
        audit(attributes=["view"], export=True)


def predictions(template, target, *, keep=lambda name: True, more=()):
    """A filled table: two findings at random, of the images that ``keep`` keeps, and of ``more``."""
    names = [line.split(",")[0] for line in template.read_text().splitlines()[1:]]
    random = np.random.default_rng(0)
    rows = [f"{name},{random.random():.3f},{random.random():.3f}" for name in [*filter(keep, names), *more]]
    target.write_text("\n".join(["image,edema,atelectasis", *rows]))
    return names


# Tables of predictions.


@pytest.fixture
def template(audit, tmp_path):
    audit(out="first", export=True)
    return tmp_path / "first" / "export" / TEMPLATE_FILE


def test_predictions_of_other_images_are_counted_and_not_used(audit, template, tmp_path):
    predictions(template, tmp_path / "more.csv", more=["MRN-1", "MRN-2", "MRN-3"])
    result = audit(str(tmp_path / "more.csv"))
    [warning] = result["warnings"]
    assert "3 of its 243 predictions are of images that this audit does not have" in warning
    assert len(result["verdicts"]["sex"]) == 2
    assert written(tmp_path)["warnings"] == [warning]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 of its 243 predictions" in page
    assert "MRN" not in page + warning, "names of the user's own may be identifiers"


def test_predictions_that_are_missing_are_counted_over_all_chunks_and_views(audit, template, tmp_path):
    names = predictions(template, tmp_path / "all.csv")
    gone = {names[3], names[50], *(name for name in names if name.endswith("0000021-level1"))}
    gone |= set(names[-4:])
    assert len(gone) == 7
    predictions(template, tmp_path / "few.csv", keep=lambda name: name not in gone, more=["other"])
    result = audit(str(tmp_path / "few.csv"), BRIGHT)
    reason = result["refused"]["classifiers"]["few"]
    assert "has no prediction of 7 of 240 images, such as " in reason
    assert "; 1 of its 234 predictions are of images that this audit does not have." in reason
    assert result["incomplete"] == ["classifier few"]
    assert set(result["verdicts"]["sex"]) == {f"{BRIGHT}, edema", f"{BRIGHT}, atelectasis"}


def test_a_table_of_another_set_is_refused(audit, template, tmp_path):
    predictions(template, tmp_path / "other.csv", keep=lambda name: False, more=["a", "b"])
    with pytest.raises(
        AuditError, match=r"none of the 2 images that its table names is among the 240 .*export=true"
    ):
        audit(str(tmp_path / "other.csv"))


def test_an_image_that_could_not_be_made_needs_no_prediction(audit, monkeypatch, tmp_path):
    """What the export does not have is not asked for."""
    from jobs.auditing.making import Source

    whole = Source._edited

    def edited(self, batch, attribute, level, *, sample):
        made = whole(self, batch, attribute, level, sample=sample)
        made[0] = torch.nan
        return made

    monkeypatch.setattr(Source, "_edited", edited)
    result = audit(export=True, seed=5)
    assert result["exported"] < 240
    predictions(tmp_path / "out" / "export" / TEMPLATE_FILE, tmp_path / "made.csv")
    later = audit(str(tmp_path / "made.csv"), seed=5)
    assert later["refused"]["classifiers"] == {}
    assert any("could not make every image" in warning for warning in later["warnings"])


# Refused targets, and the status.


def test_refused_targets_are_named_on_the_screen_in_json_and_in_the_report(command, tmp_path):
    done = command(BRIGHT, CONSTANT, NAN, PERCENT, attributes=["sex", "group"])
    reasons = {
        f"{CONSTANT}, edema": "the score is 0.3 for all 60",
        f"{NAN}, atelectasis": "no finite numbers",
        f"{PERCENT}, edema": "lie outside 0 to 1",
        f"{PERCENT}, atelectasis": "lie outside 0 to 1",
    }
    refused = written(tmp_path)["refused"]["targets"]
    assert set(refused) == set(reasons)
    page, told = ((tmp_path / "out" / name).read_text() for name in ("report.html", "summary.md"))
    for name, reason in reasons.items():
        assert reason in refused[name]
        assert refused[name].startswith("For sex, group: ")
        assert f"refused: {name}: {refused[name]}" in done.stdout
        assert refused[name] in html.unescape(page)
        assert refused[name] in told.replace("\\", "")


def test_a_refused_finding_leaves_the_status_and_a_silent_classifier_does_not(command):
    done = command(NAN)
    assert done.exit_code == 0, done.stderr
    assert "refused: " in done.stdout
    done = command(BRIGHT, CONSTANT)
    assert done.exit_code == common.INCOMPLETE == 3
    assert f"error: Without a verdict: classifier {CONSTANT} for sex." in done.stderr
    assert f"{BRIGHT}, edema" in done.stdout, "the others go on"


def test_refused_attributes_and_classifiers_are_the_status(command, tmp_path):
    done = command(BRIGHT, FAILING, BIRDS, attributes=["sex", "view"])
    assert done.exit_code == 3
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: Without a verdict: attribute view; ")
    assert f"classifier {FAILING}" in last
    assert f"classifier {BIRDS}" in last
    assert set(written(tmp_path)["refused"]["classifiers"]) == {FAILING, BIRDS}
    assert "invariant" in done.stdout or "inconclusive" in done.stdout or "depends" in done.stdout


@pytest.mark.parametrize(("missing", "status"), [([], 0), (["classifier planted"], 3)])
def test_the_demo_follows_the_status_of_its_audit(monkeypatch, missing, status):
    refused = {"targets": {"planted, edema": "constant"}}
    result = {"seconds": 1.0, "audit": {"report": "r", "incomplete": missing, "refused": refused}}
    monkeypatch.setattr("jobs.demo.connect", lambda address: None)
    monkeypatch.setattr("jobs.pipeline.run_pipeline", lambda *places, **more: result)
    assert CliRunner().invoke(app, ["demo"]).exit_code == status


def test_nothing_at_all_is_status_1(command):
    done = command(BRIGHT, attributes=["view"])
    assert done.exit_code == 1
    assert "error: Nothing could be audited." in done.stderr


# Small levels: of the scanners, digital has 29 patients, compact 9, analog 3 and mobile none.


def test_a_small_level_is_set_aside_and_the_others_go_on(audit, tmp_path):
    result = audit(BRIGHT, attributes=["scanner"], minimum=5)
    [warning] = result["warnings"]
    assert "analog (4 studies of 3 patients), mobile (0 studies of 0 patients)" in warning
    assert "levels.scanner=[compact,digital]" in warning
    assert result["incomplete"] == []
    [found] = written(tmp_path)["attributes"]
    assert found["audits"][0]["levels"] == ["compact", "digital"]
    assert found["audits"][0]["individuals"] == 56
    assert written(tmp_path)["warnings"] == [warning]


def test_without_two_levels_of_patients_enough_the_settings_are_named(audit):
    with pytest.raises(
        AuditError,
        match=r"'scanner' has 1 level.*analog 3, compact 9, digital 29, mobile 0; audit.minimum_patients = 10"
        r".*lower audit.minimum_patients; levels.scanner=\[\.\.\.\] chooses",
    ):
        audit(BRIGHT, attributes=["scanner"], minimum=10)


def test_a_level_that_the_user_named_is_not_left_out(audit):
    result = audit(
        BRIGHT, attributes=["scanner", "sex"], levels={"scanner": ["digital", "compact", "analog"]}
    )
    assert (
        "level 'analog' has 3 patients, and levels.scanner names it"
        in result["refused"]["attributes"]["scanner"]
    )
    assert result["incomplete"] == ["attribute scanner"]
    assert result["warnings"] == []


def test_a_level_named_twice(audit):
    with pytest.raises(AuditError, match=r"levels\.sex = male, female, male names a level twice"):
        audit(BRIGHT, levels={"sex": ["male", "female", "male"]})
