"""Audits: asked for, run, remembered, across restarts of everything but storage."""

import json

import pytest

from counterray.storage import resolve
from serve.auditor import AUDIT, MOST_ATTEMPTS, REPORT, Auditor
from serve.problems import ProblemError
from serve.schemas import AuditRequest
from serve.settings import Settings
from tests.serve_jobs import Jobs, Status


@pytest.fixture
def place(tmp_path):
    """Roots with a bundle, an ONNX file and a dataset, and something outside."""
    for name in ("roots/classifier", "roots/data", "outside"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "roots/classifier/manifest.json",
        "roots/net.onnx",
        "outside/manifest.json",
        "outside/x.onnx",
    ):
        (tmp_path / name).write_text("{}")
    (tmp_path / "roots/link").symlink_to(tmp_path / "outside")
    return tmp_path


def auditor_of(place, jobs, **audits):
    settings = Settings.model_validate(
        {
            "models": {"words": {"bundle": "s3://models/words"}},
            "judges": ["s3://models/judge"],
            "audits": {"roots": [str(place / "roots")], "out": str(place / "out"), **audits},
        }
    )
    return Auditor(settings, jobs)


def request_of(place, **asked):
    given = {"classifiers": (str(place / "roots/classifier"),), "data": str(place / "roots/data")}
    return AuditRequest(**{**given, "generator": "words", "attributes": ("sex",), **asked})


def finish(place, name, jobs, **verdicts):
    """What the job leaves behind."""
    out = resolve(place / "out") / name
    audits = [{"attribute": name, "audits": [{"verdicts": found}]} for name, found in verdicts.items()]
    (out / AUDIT).write_json({"attributes": audits})
    (out / REPORT).write_bytes(b"<html>report</html>")
    jobs.status[f"audit-{name}-1"] = Status.SUCCEEDED


def test_an_audit_runs_and_leaves_its_verdicts_and_its_report(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs, settings={"resources.workers": 1})
    asked = request_of(place, attributes=("sex", "scanner"), studies=50)
    audit = auditor.submit(asked)
    assert (audit.state, audit.request) == ("running", asked)
    [command] = jobs.commands.values()
    assert command[1:4] == ["-m", "jobs", "audit"]
    text = " ".join(command)
    for part in (
        *("--generator s3://models/words", "--judge s3://models/judge", "--attribute scanner"),
        *("--set resources.workers=1", "--set studies=50", f"--data {place}/roots/data"),
    ):
        assert part in text
    with pytest.raises(ProblemError) as error:
        auditor.report(audit.id)
    assert error.value.kind == "audit-not-done"
    finish(place, audit.id, jobs, sex={"classifier/edema": "bias"})
    done = auditor.find(audit.id)
    assert done.state == "succeeded"
    assert done.verdicts == {"sex": {"classifier/edema": "bias"}}
    assert done.finished > done.created
    assert auditor.report(audit.id) == b"<html>report</html>"


def test_a_restart_of_serve_finds_the_audit_and_its_report(place):
    jobs = Jobs()
    name = auditor_of(place, jobs).submit(request_of(place)).id
    later = auditor_of(place, jobs)
    assert later.find(name).state == "running"
    finish(place, name, jobs)
    assert auditor_of(place, jobs).find(name).state == "succeeded"
    jobs.forget()
    assert auditor_of(place, jobs).report(name) == b"<html>report</html>"


def test_a_restart_of_the_cluster_s_head_runs_it_again_but_not_for_ever(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    name = auditor.submit(request_of(place)).id
    for attempt in range(2, MOST_ATTEMPTS + 1):
        jobs.forget()
        assert auditor.find(name).state == "queued"
        auditor.advance()
        assert auditor.find(name).state == "running"
        assert f"audit-{name}-{attempt}" in jobs.status
    first, *_, last = jobs.commands.values()
    assert first == last
    jobs.forget()
    auditor.advance()
    ended = auditor.find(name)
    assert ended.state == "failed"
    assert "vanished" in ended.message


def test_a_job_that_ended_while_nobody_looked_counts_by_what_it_left(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    name = auditor.submit(request_of(place)).id
    finish(place, name, jobs, sex={"classifier, edema": "no effect"})
    jobs.forget()
    assert auditor.find(name).state == "succeeded"


def test_an_audit_that_leaves_out_a_classifier_has_its_report_and_says_so(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    name = auditor.submit(request_of(place)).id
    finish(place, name, jobs, sex={"classifier, edema": "no effect"})
    jobs.status[f"audit-{name}-1"] = Status.FAILED
    jobs.logs = "12:00 I starting\nerror: Without a verdict: other (constant).\n"
    audit = auditor.find(name)
    assert (audit.state, audit.message) == ("succeeded", "Without a verdict: other (constant).")
    assert auditor.report(name)


def test_a_failed_audit_says_why(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    name = auditor.submit(request_of(place)).id
    jobs.status[f"audit-{name}-1"] = Status.FAILED
    jobs.logs = "12:00 I starting\nerror: Nothing could be audited. Give more studies.\n"
    assert auditor.find(name).message == "Nothing could be audited. Give more studies."
    jobs.logs = ""
    assert auditor.find(name).message.startswith("Nothing could be audited")


def test_ray_that_does_not_answer_is_no_verdict(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    name = auditor.submit(request_of(place)).id
    jobs.away = True
    with pytest.raises(ProblemError) as error:
        auditor.find(name)
    assert error.value.kind == "unavailable"
    jobs.away = False
    assert auditor.find(name).state == "running"


def test_audits_wait_for_their_turn_and_the_queue_is_bounded(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs, running=1, queued=1)
    first, second = (auditor.submit(request_of(place)).id for _ in range(2))
    assert [audit.state for audit in auditor.listed()] == ["queued", "running"]
    with pytest.raises(ProblemError) as error:
        auditor.submit(request_of(place))
    assert error.value.kind == "overloaded"
    finish(place, first, jobs)
    auditor.advance()
    assert auditor.find(second).state == "running"


def test_an_audit_can_be_stopped_and_deleted(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    name = auditor.submit(request_of(place)).id
    auditor.delete(name)
    assert jobs.status[f"audit-{name}-1"] is Status.STOPPED
    assert auditor.listed() == []
    with pytest.raises(ProblemError) as error:
        auditor.find(name)
    assert error.value.kind == "unknown-audit"


@pytest.mark.parametrize(
    "address",
    [
        "{place}/outside",
        "{place}/outside/x.onnx",
        "{place}/roots/../outside",
        "{place}/roots/link",
        "{place}/roots",
        "{place}/roots/none",
        "{place}/roots/data",
        "os:system",
        "http://example.org/x.onnx",
        "https://example.org/x.onnx",
        "file:///{place}/roots/net.onnx",
        "s3://elsewhere/model",
        "\0",
        "{place}/roots/net\n.onnx",
        "{place}/roots/model.pkl",
        "{place}/roots/classifier.yaml",
        "--set",
        "",
    ],
)
def test_what_is_audited_lies_below_a_root_and_is_no_code(place, address):
    jobs = Jobs()
    classifier = address.format(place=place)
    with pytest.raises(ProblemError) as error:
        auditor_of(place, jobs).submit(request_of(place, classifiers=(classifier,)))
    assert error.value.kind == "audit-refused"
    assert jobs.commands == {}


def test_onnx_files_and_the_exact_generator_are_taken_without_judges(place):
    jobs = Jobs()
    asked = request_of(place, classifiers=(str(place / "roots/net.onnx"),), generator="exact")
    assert auditor_of(place, jobs).submit(asked).state == "running"
    assert "--judge" not in next(iter(jobs.commands.values()))
    with pytest.raises(ProblemError) as error:
        auditor_of(place, jobs).submit(request_of(place, generator="none"))
    assert error.value.kind == "unknown-model"


def test_a_name_with_a_shell_in_it_is_one_word(place):
    jobs = Jobs()
    data = f"{place}/roots/data; rm -rf *"
    auditor_of(place, jobs).submit(request_of(place, data=data))
    [command] = jobs.commands.values()
    assert data in command
    assert json.dumps(command).count("rm -rf") == 1


def test_an_audit_that_ray_does_not_take_waits_until_it_does(place):
    jobs = Jobs()
    auditor, jobs.full = auditor_of(place, jobs), True
    audit = auditor.submit(request_of(place))
    for _ in range(MOST_ATTEMPTS + 1):
        auditor.advance()
    assert auditor.find(audit.id).state == "queued"
    jobs.full = False
    auditor.advance()
    assert auditor.find(audit.id).state == "running"


def test_a_job_that_another_gateway_submitted_is_followed(place):
    jobs = Jobs()
    auditor, jobs.full = auditor_of(place, jobs), True
    audit = auditor.submit(request_of(place))
    jobs.status[f"audit-{audit.id}-1"] = Status.RUNNING
    auditor.advance()
    assert auditor.find(audit.id).state == "running"


def test_an_audit_of_nothing_failed_though_it_has_a_report(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    audit = auditor.submit(request_of(place))
    finish(place, audit.id, jobs)
    jobs.status[f"audit-{audit.id}-1"] = Status.FAILED
    jobs.logs = "error: Nothing could be audited. Attribute 'sex': too few patients. Add patients."
    assert auditor.find(audit.id).state == "failed"
    assert "Add patients" in auditor.find(audit.id).message
