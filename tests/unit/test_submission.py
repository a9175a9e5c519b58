"""What is sent to a cluster, what is refused before, and how a job is followed."""

from __future__ import annotations

import asyncio
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from ray._private.runtime_env.packaging import create_package

from jobs.__main__ import app
from jobs.submission import following
from jobs.submission.client import connect
from jobs.submission.command import HERE_ONLY, read_command
from jobs.submission.errors import AwayError, SubmissionError
from jobs.submission.following import find, follow, stop
from jobs.submission.package import CHECKOUT, SENT_FOLDERS, SENT_SUFFIXES, is_sent, runtime_environment
from jobs.submission.sending import Request, send

GROUP = typer.main.get_command(app)
TRAIN = [
    "train",
    "--config",
    "jobs/configs/train/gsvae_phantom.yaml",
    "--data",
    "s3://d/p",
    "--out",
    "s3://r/a",
]


def parsed(words: list[str]):
    return read_command(words, GROUP, GROUP.make_context("python -m jobs", ["train"], resilient_parsing=True))


def names_in_package(checkout, target) -> set[str]:
    environment = runtime_environment("image", checkout=checkout)
    create_package(
        environment["working_dir"], target, include_gitignore=True, excludes=environment["excludes"]
    )
    return {name for name in zipfile.ZipFile(target).namelist() if not name.endswith("/")}


def test_the_package_holds_every_source_file_that_git_knows_and_nothing_else(tmp_path):
    names = names_in_package(CHECKOUT, tmp_path / "package.zip")
    source = {
        path.relative_to(CHECKOUT).as_posix()
        for folder in SENT_FOLDERS
        for path in (CHECKOUT / folder).rglob("*")
        if path.suffix in SENT_SUFFIXES and "egg-info" not in str(path) and "__pycache__" not in str(path)
    }
    assert names == source
    assert {"jobs/train.py", "platform/counterray/data/study.py", "serve/configs/cluster.yaml"} <= names
    assert (tmp_path / "package.zip").stat().st_size < 4 << 20


@pytest.mark.parametrize(
    "planted",
    [
        *(".git/config", ".local/demo/bundle/weights.safetensors", ".env", "data/patient.dcm", "notes.csv"),
        *("platform/counterray/.env", "jobs/configs/.aws/config", "serve/secrets.json", "jobs/id_rsa.py"),
        *("jobs/weights.safetensors", "serve/model.onnx", "jobs/patient.DCM", "jobs/studies.parquet"),
        *("jobs/aws_credentials.json", "serve/keys.pem", "platform/counterray/data/image.png", "tests/a.py"),
    ],
)
def test_data_bundles_and_secrets_stay_here(planted, tmp_path):
    for name in ("jobs/train.py", planted):
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text("x")
    assert names_in_package(tmp_path / "checkout", tmp_path / "package.zip") == {"jobs/train.py"}


def test_packages_come_with_the_image_or_from_the_lock():
    assert "uv" not in runtime_environment("image")
    locked = runtime_environment("lock")["uv"]
    assert "ray==2.60" in Path(locked).read_text()


def test_variables_are_given_and_secrets_refused():
    environment = runtime_environment("image", ["AWS_ENDPOINT_URL=http://s3:9000", "A=b=c"])
    assert environment["env_vars"] == {
        "PYTHONPATH": "platform", "AWS_ENDPOINT_URL": "http://s3:9000", "A": "b=c",
    }  # fmt: skip
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "COUNTERRAY_LLM_API_KEY", "REDIS_PASSWORD"):
        with pytest.raises(SubmissionError, match="shown to everyone") as caught:
            runtime_environment("image", [f"{name}=hidden"])
        assert "hidden" not in str(caught.value)
    with pytest.raises(SubmissionError, match="NAME=VALUE"):
        runtime_environment("image", ["no assignment"])


def test_a_training_is_told_to_go_on_once():
    assert parsed(TRAIN).words[-1] == "--continue"
    assert parsed([*TRAIN, "--resume"]).words[-1] == "--resume"
    assert parsed([*TRAIN, "--continue"]).words.count("--continue") == 1
    assert parsed(TRAIN).line.startswith(
        "python -m jobs train --config jobs/configs/train/gsvae_phantom.yaml"
    )
    assert parsed(["ingest", "--source", "phantom", "--out", "s3://d/p"]).words[-1] == "s3://d/p"


def test_the_shell_of_the_cluster_reads_what_was_written():
    words = [
        "generate",
        "--model",
        "s3://m/b",
        "--data",
        "s3://d",
        "--out",
        "s3://o/a b",
        "--prompt",
        "No; $(id)",
    ]
    assert parsed(words).line.endswith("'s3://o/a b' --prompt 'No; $(id)'")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve"], "no job for a cluster"),
        (["submit", "--", "train"], "no job for a cluster"),
        (["trian"], "Available: audit, augment"),
        ([*TRAIN[:-1], ".local/run"], "--out = .local/run is a place on this machine"),
        ([*TRAIN[:-1], "run"], "--out = run is a place"),
        ([*TRAIN, "--set", "inputs.identity=.local/identity/bundle"], "--set inputs.identity = .local"),
        ([*TRAIN, "--set", "inputs.identity=tests/unit"], "--set inputs.identity = tests/unit"),
        ([*TRAIN, "--address", "auto"], "it runs on the cluster"),
        (["demo"], "demo without --out"),
        (["train", "--config", "mine/a.yaml", *TRAIN[3:]], "--config = mine/a.yaml is a place"),
        (["train", "--config", "jobs/configs/../../a.yaml", *TRAIN[3:]], "is a place"),
    ],
)
def test_what_no_node_could_reach_is_refused(words, message):
    with pytest.raises(SubmissionError, match=message):
        parsed(words)


def test_absolute_folders_and_uris_pass_and_only_source_is_sent():
    assert parsed([*TRAIN[:-1], "/shared/run"]).out == "/shared/run"
    assert parsed(["demo", "--out", "s3://r/demo"]).out == "s3://r/demo"
    assert parsed(["audit", "--generator", "exact", "--data", "/d", "--attribute", "sex", "--out", "/o"])
    assert is_sent("jobs/configs/train/gsvae_phantom.yaml")
    assert not is_sent("README.md")
    assert not is_sent("jobs/configs/train/none.yaml")


def test_an_unknown_option_of_the_job_is_refused_here():
    with pytest.raises(Exception, match="No such option") as caught:
        parsed([*TRAIN, "--outt", "s3://r/a"])
    assert caught.value.exit_code == 2


def test_every_job_is_for_a_cluster_or_said_not_to_be():
    assert set(HERE_ONLY) <= set(GROUP.commands)
    for name in set(GROUP.commands) - set(HERE_ONLY):
        options = {option for parameter in GROUP.commands[name].params for option in parameter.opts}
        assert {"--out", "--address"} <= options, name


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "No cluster is named"),
        ("auto", "no URL of a dashboard"),
        ("ray://head:10001", "ray:// addresses are for drivers"),
        ("http://127.0.0.1:1", "Nobody answers at http://127.0.0.1:1"),
        ("http://nowhere.invalid:8265", "Nobody answers"),
    ],
)
def test_an_address_that_leads_nowhere_is_said_at_once(address, message, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(SubmissionError, match=message):
        connect(address)


class Head:
    """A cluster's jobs; a list entry of ``tails`` is what one connection gives, an exception breaks it."""

    def __init__(self, *statuses: str, tails: tuple[list[Any], ...] = ([],), code: int | None = None):
        self.statuses, self.tails, self.code, self.asked = list(statuses), list(tails), code, []

    def get_address(self):
        return "http://head:8265"

    def details(self, status: str, out: str = "s3://r/a"):
        return SimpleNamespace(
            submission_id="train-1", status=status, driver_exit_code=self.code, message="said",
            start_time=1000, entrypoint="python -m jobs train", metadata={"out": out},
        )  # fmt: skip

    def get_job_info(self, name):
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status == "away":
            raise ConnectionError("refused")
        if status == "unknown":
            raise RuntimeError("Request failed with status code 404: Job train-1 does not exist.")
        return self.details(status)

    async def tail_job_logs(self, name):
        for part in self.tails.pop(0) if self.tails else []:
            await asyncio.sleep(0)
            if isinstance(part, Exception):
                raise part
            yield part

    def list_jobs(self):
        return [self.details(self.statuses[0])]

    def submit_job(self, **asked):
        self.asked.append(asked)
        return asked["submission_id"]

    def stop_job(self, name):
        self.asked.append(name)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(following, "_RETRY_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", None, 1), ("FAILED", -9, -9), ("STOPPED", None, 130),
     ("RUNNING", None, None), ("PENDING", None, None)],
)  # fmt: skip
def test_the_exit_status_is_the_jobs_own(status, code, expected):
    assert find(Head(status, code=code), "train-1").exit_status == expected


def test_a_log_is_written_once_though_the_connection_breaks(capsys):
    broken = RuntimeError("WebSocket connection closed unexpectedly")
    head = Head(
        "RUNNING", "away", "RUNNING", "SUCCEEDED",
        tails=(["one\n", "two\n", broken], [broken], ["one\ntwo\nthr", broken], ["one\ntwo\nthree\n"]),
    )  # fmt: skip
    assert follow(head, "train-1").exit_status == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_what_a_broken_connection_kept_back_of_an_ended_job_is_asked_for_once_more(capsys):
    head = Head("FAILED", code=1, tails=(["one\n", OSError("reset")], ["one\n", "error: why\n"]))
    assert follow(head, "train-1").exit_status == 1
    assert capsys.readouterr().out == "one\nerror: why\n"


def test_a_head_that_stays_away_and_one_that_forgot_are_told_apart(monkeypatch):
    monkeypatch.setattr(following, "LOST_SECONDS", 0.05)
    with pytest.raises(SubmissionError, match=r"may go on without us.*cluster logs train-1"):
        follow(Head("away"), "train-1")
    with pytest.raises(SubmissionError, match="started anew has forgotten") as caught:
        follow(Head("RUNNING", "unknown"), "train-1")
    assert not isinstance(caught.value, AwayError)


def test_a_job_at_work_on_the_same_results_is_named():
    head = Head("RUNNING")
    with pytest.raises(SubmissionError, match="Job train-1 is at work on s3://r/a"):
        send(head, parsed(TRAIN), Request())
    assert not head.asked
    name = send(Head("STOPPED"), parsed(TRAIN), Request())
    assert name.startswith("train-")
    asked = (head := Head("FAILED"), send(head, parsed(TRAIN), Request(cpus=2, memory_gib=1.5)))[0].asked[0]
    assert asked["entrypoint_num_cpus"] == 2
    assert asked["entrypoint_num_gpus"] is None
    assert asked["entrypoint_memory"] == 1.5 * 2**30
    assert asked["metadata"] == {"job": "train", "out": "s3://r/a"}


def test_stopping_waits_for_the_end(monkeypatch):
    head = Head("RUNNING", "RUNNING", "STOPPED")
    assert stop(head, "train-1").exit_status == 130
    assert head.asked == ["train-1"]
    ended = Head("SUCCEEDED")
    assert stop(ended, "train-1").status == "SUCCEEDED"
    assert not ended.asked
    monkeypatch.setattr(following, "STOP_SECONDS", 0.01)
    with pytest.raises(SubmissionError, match="has not within"):
        stop(Head("RUNNING"), "train-1")
