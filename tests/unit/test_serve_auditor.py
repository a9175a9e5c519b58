"""Audits: asked for, run, remembered, across restarts of everything but storage."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest

from counterray.bundle import write_bundle
from counterray.storage import resolve
from serve import audit_records, gateway
from serve.audit_records import AUDIT, REPORT, REQUEST, RESULTS, STATE
from serve.auditor import MOST_ATTEMPTS, Auditor
from serve.problems import ProblemError
from serve.ray_jobs import RayJobs
from serve.schemas import AuditRequest
from serve.settings import Settings
from tests.serve_jobs import AWAY, Jobs, Status


def empty_bundle(folder):
    """A bundle without weights."""
    export = SimpleNamespace(tensors={}, metadata={}, files={}, intended_use="None.", limits="All.")
    told = {"method": "classifier", "stage": "classifier", "config": {}, "data_fingerprint": "0"}
    write_bundle(resolve(folder), export=export, **told)


@pytest.fixture
def place(tmp_path):
    """Roots with a bundle, an ONNX file and a dataset, and something outside."""
    for name in ("roots/classifier", "outside"):
        empty_bundle(tmp_path / name)
    (tmp_path / "roots/data").mkdir()
    for name in ("roots/data/manifest.json", "roots/net.onnx", "roots/model.pkl", "outside/x.onnx"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "roots/link").symlink_to(tmp_path / "outside")
    return tmp_path


def auditor_of(place, jobs, joins="", **audits):
    settings = Settings.model_validate(
        {
            "models": {"words": {"bundle": "s3://models/words"}},
            "judges": ["s3://models/judge"],
            "audits": {"roots": [str(place / "roots")], "out": str(place / "out"), **audits},
        }
    )
    return Of(Auditor(settings, RayJobs(jobs), joins=joins))


class Of:
    """An auditor as one owner sees it."""

    def __init__(self, auditor, owner="ann"):
        self.auditor, self.owner, self.advance = auditor, owner, auditor.advance

    def __getattr__(self, name):
        return partial(getattr(self.auditor, name), owner=self.owner)


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


@pytest.mark.parametrize("error", AWAY, ids=repr)
def test_ray_that_does_not_answer_is_no_verdict(place, error):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    name = auditor.submit(request_of(place)).id
    jobs.away = error
    for ask in (lambda: auditor.find(name), auditor.listed):
        with pytest.raises(ProblemError) as raised:
            ask()
        assert raised.value.kind == "unavailable"
    auditor.advance()
    jobs.away = None
    assert auditor.find(name).state == "running"
    assert list(jobs.commands) == [f"audit-{name}-1"]


@pytest.mark.parametrize("error", AWAY, ids=repr)
def test_an_audit_is_taken_while_ray_does_not_answer_and_runs_once_it_does(place, error):
    jobs = Jobs()
    auditor, jobs.away = auditor_of(place, jobs), error
    audit = auditor.submit(request_of(place))
    assert audit.state == "queued"
    jobs.away = None
    auditor.advance()
    assert list(jobs.commands) == [f"audit-{audit.id}-1"]
    jobs.away = error
    assert auditor.submit(request_of(place)).state == "queued"  # Whether the first still runs is not known.


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


def gone(auditor, name):
    """Whether nothing tells of an audit."""
    for ask in (auditor.find, auditor.report, auditor.delete):
        with pytest.raises(ProblemError) as error:
            ask(name)
        assert error.value.kind == "unknown-audit"
    return auditor.listed() == []


def test_an_audit_can_be_stopped_and_deleted(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    name = auditor.submit(request_of(place)).id
    auditor.delete(name)
    assert jobs.status[f"audit-{name}-1"] is Status.STOPPED
    assert gone(auditor, name)
    auditor.advance()
    assert not (place / "out" / name).exists()


def test_a_deleted_audit_s_folder_goes_once_its_job_has_ended(place):
    jobs = Jobs()
    auditor, jobs.lingers = auditor_of(place, jobs), True
    name = auditor.submit(request_of(place)).id
    auditor.delete(name)
    assert gone(auditor, name)
    finish(place, name, Jobs(), sex={"classifier/edema": "bias"})  # The job goes on writing.
    auditor.advance()
    assert (place / "out" / name).exists()
    jobs.status[f"audit-{name}-1"] = Status.STOPPED
    auditor.advance()
    assert not (place / "out" / name).exists()


def test_what_another_gateway_still_writes_does_not_bring_a_deleted_audit_back(place, monkeypatch):
    jobs = Jobs()
    auditor, other = auditor_of(place, jobs), auditor_of(place, jobs)
    name = auditor.submit(request_of(place)).id
    folder = place / "out" / name
    request = (folder / REQUEST).read_text()
    finish(place, name, jobs, sex={"classifier/edema": "bias"})
    assert other.find(name).state == "succeeded"
    auditor.delete(name)
    assert not folder.exists()
    # It was about to start the audit anew, and to write down how it ended.
    jobs.submit_job(entrypoint="x", submission_id=f"audit-{name}-2", runtime_env={})
    folder.mkdir()
    (folder / REQUEST).write_text(request)
    (folder / STATE).write_text("{}")
    assert gone(other, name)
    for _ in range(2):
        other.advance()
    assert jobs.status[f"audit-{name}-2"] is Status.STOPPED
    assert not folder.exists()
    assert gone(auditor, name)
    assert list((place / "out").iterdir()) != []
    monkeypatch.setattr(audit_records, "TOMBSTONE_SECONDS", 0.0)
    auditor.advance()
    assert list((place / "out").iterdir()) == []


def test_an_audit_is_deleted_while_ray_does_not_answer(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    name = auditor.submit(request_of(place)).id
    jobs.away = AWAY[0]
    auditor.delete(name)
    assert gone(auditor, name)
    jobs.away = None
    for _ in range(2):
        auditor.advance()
    assert jobs.status[f"audit-{name}-1"] is Status.STOPPED
    assert not (place / "out" / name).exists()


def test_an_audit_that_vanishes_while_it_is_listed_is_left_out(place, monkeypatch):
    jobs = Jobs()
    auditor = auditor_of(place, jobs, running=2)
    first, second = (auditor.submit(request_of(place)).id for _ in range(2))
    names = auditor.auditor.out.names()
    (place / "out" / first / REQUEST).unlink()
    monkeypatch.setattr(type(auditor.auditor.out), "names", lambda self: names)
    assert [audit.id for audit in auditor.listed()] == [second]


def test_an_audit_is_its_owner_s_alone(place):
    jobs = Jobs()
    ann = auditor_of(place, jobs, running=2)
    bob = Of(ann.auditor, "bob")
    name = ann.submit(request_of(place)).id
    finish(place, name, jobs, sex={"classifier/edema": "bias"})
    assert ann.report(name)
    assert gone(bob, name)
    assert gone(Of(auditor_of(place, jobs).auditor, "bob"), name)
    theirs = bob.submit(request_of(place)).id
    assert [audit.id for audit in bob.listed()] == [theirs]
    assert [audit.id for audit in ann.listed()] == [name]


def test_a_request_that_cannot_be_read_keeps_no_other_from_running(place):
    jobs = Jobs()
    auditor = auditor_of(place, jobs)
    (place / "out" / ("0" * 32)).mkdir(parents=True)
    (place / "out" / ("0" * 32) / REQUEST).write_text("{}")
    assert auditor.submit(request_of(place)).state == "running"
    assert len(auditor.listed()) == 1


def test_audits_that_have_ended_are_neither_read_nor_asked_for_again(place, monkeypatch):
    jobs = Jobs()
    auditor = auditor_of(place, jobs, running=2)
    ended, running = (auditor.submit(request_of(place)).id for _ in range(2))
    finish(place, ended, jobs, sex={"classifier/edema": "bias"})
    before = auditor.listed()
    auditor.listed()
    for file in range(1000):
        (place / "out" / running / RESULTS / str(file)).mkdir(parents=True)
    reads = []
    read_json = type(auditor.auditor.out).read_json
    monkeypatch.setattr(
        type(auditor.auditor.out), "read_json", lambda self: reads.append(self.uri) or read_json(self)
    )
    jobs.asked.clear()
    assert auditor.listed() == before
    assert jobs.asked == [f"audit-{running}-1"]
    assert not any(ended in read for read in reads)


@pytest.mark.parametrize("joins", ["", "10.0.0.1:6379"])
def test_the_job_joins_the_ray_that_it_is_told(place, joins):
    jobs = Jobs()
    auditor_of(place, jobs, joins=joins).submit(request_of(place))
    [command] = jobs.commands.values()
    assert ("--address" in command) == bool(joins)
    if joins:
        assert command[command.index("--address") + 1] == joins


@pytest.mark.parametrize(
    ("address", "url", "joins"),
    [
        ("auto", "http://dashboard-of-10.0.0.1:6379", "10.0.0.1:6379"),
        ("http://other:8265", "http://other:8265", ""),
    ],
)
def test_auto_is_the_ray_of_the_gateway_for_who_submits_and_for_the_job(
    place, monkeypatch, address, url, joins
):
    urls = []
    monkeypatch.setattr(gateway, "JobSubmissionClient", urls.append)
    monkeypatch.setattr(gateway, "ray_address_to_api_server_url", "http://dashboard-of-{}".format)
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(gateway.ray, "get_runtime_context", lambda: context)
    settings = auditor_of(place, Jobs(), address=address).auditor.settings
    assert gateway._auditor(settings).joins == joins
    assert urls == [url]


def test_a_model_that_the_server_no_longer_has_ends_its_audits(place):
    jobs = Jobs()
    auditor, jobs.full = auditor_of(place, jobs), True
    name = auditor.submit(request_of(place)).id
    auditor.auditor.settings = auditor.auditor.settings.model_copy(update={"models": {}})
    auditor.advance()
    assert "'words'" in auditor.find(name).message


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
        "{place}/roots/none.onnx",
        "{place}/roots/changed",
        "{place}/roots/classifier.yaml",
        "--set",
        "",
    ],
)
def test_what_is_audited_lies_below_a_root_and_is_no_code(place, address):
    jobs = Jobs()
    classifier = address.format(place=place)
    empty_bundle(place / "roots/changed")
    manifest = place / "roots/changed/manifest.json"
    manifest.write_text(manifest.read_text().replace('"classifier"', '"other"'))
    with pytest.raises(ProblemError) as error:
        auditor_of(place, jobs).submit(request_of(place, classifiers=(classifier,)))
    assert error.value.kind == "audit-refused"
    assert jobs.commands == {}


@pytest.mark.parametrize("data", ["none", "classifier/none", "net.onnx", "../outside"])
def test_data_is_a_dataset_below_a_root(place, data):
    jobs = Jobs()
    with pytest.raises(ProblemError) as error:
        auditor_of(place, jobs).submit(request_of(place, data=f"{place}/roots/{data}"))
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
    shutil.copytree(place / "roots/data", data)
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


def test_an_audit_whose_log_is_lost_has_failed_too(place):
    jobs = Jobs()
    auditor, jobs.logs = auditor_of(place, jobs), None
    name = auditor.submit(request_of(place)).id
    jobs.status[f"audit-{name}-1"] = Status.FAILED
    audit = auditor.find(name)
    assert (audit.state, audit.message.partition(";")[0]) == ("failed", "The job failed")


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
