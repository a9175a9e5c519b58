"""Jobs sent to a real head that asks for a token: trained, stopped, continued, audited, refused."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.heads import Head, head_with_token
from tests.conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SMALL = {
    "backbone.widths": "[8, 16]",
    "backbone.blocks": "[1, 1]",
    "batch_size": "16",
    "resources.cpus_per_worker": "0.5",
    "log_every_steps": "1",
    "checkpoint.every_steps": "20",
    "checkpoint.validation_studies": "64",
    "loader.block_studies": "256",
}

STEPS = 800
"""Enough that it is stopped before its end."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with head_with_token() as running:
        yield running


@pytest.fixture(scope="module")
def data(head: Head, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset that a submitted ingest made."""
    out = str(tmp_path_factory.mktemp("shared") / "data")
    settings = {"source.studies": "300", "image_size": "32", "shard_rows": "150"}
    done = submit(head, "ingest", "--source", "phantom", "--out", out, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def jobs(head: Head, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of ``python -m jobs``, with the head's token unless ``environment`` says otherwise."""
    return subprocess.run(
        [sys.executable, "-m", "jobs", *words],
        cwd=ROOT,
        env=head.environment(**environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def submit(head: Head, *words: str, flags: tuple[str, ...] = (), **settings: str):
    assignments = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return jobs(head, "submit", "--address", head.url, *flags, "--", *words, *assignments)


def train(head: Head, data: str, out: str, *flags: str, steps: int, **settings: str):
    config = "jobs/configs/train/classifier_phantom.yaml"
    places = ("--config", config, "--data", data, "--out", out)
    return submit(head, "train", *places, flags=flags, steps=str(steps), **{**SMALL, **settings})


def cluster(head: Head, *words: str) -> Any:
    done = jobs(head, "cluster", *words, "--address", head.url, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def bundle(head: Head, data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier whose training was stopped in the middle, and continued by the same line."""
    out = tmp_path_factory.mktemp("run") / "classifier"
    line = (head, data, str(out))
    sent = train(*line, "--detach", "--json", steps=STEPS)
    assert sent.returncode == 0, sent.stderr
    first = json.loads(sent.stdout.splitlines()[-1])
    assert first["exit_status"] is None
    assert "--continue" in first["line"]

    end = time.monotonic() + 200
    while not (out / "ray" / "checkpoint-00000020").is_dir():
        assert time.monotonic() < end, cluster(head, "status", first["id"])
        time.sleep(0.2)

    stopped = cluster(head, "stop", first["id"])
    assert (stopped["status"], stopped["exit_status"]) == ("STOPPED", 130)
    assert not (out / "bundle").exists()
    again = train(*line, steps=STEPS, **{"checkpoint.every_steps": "400"})
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr
    assert f"bundle: {out}/bundle" in again.stdout  # the log, followed
    assert jobs(head, "cluster", "logs", first["id"], "--address", head.url).returncode == 130
    return f"{out}/bundle"


def test_a_training_that_was_stopped_goes_on_when_the_same_line_is_sent_again(bundle: str) -> None:
    lines = [json.loads(line) for line in (Path(bundle).parent / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    times = [line["time"] for line in lines if line["split"] == "train"]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) > 2  # the stop


@pytest.mark.nightly
def test_a_training_shows_the_metrics_that_the_dashboards_read(head: Head, data: str, tmp_path: Path) -> None:
    sent = train(head, data, f"{tmp_path}/run", "--detach", "--json", steps=100_000)
    job = json.loads(sent.stdout.splitlines()[-1])
    wanted = {
        "ray_counterray_training_step", "ray_counterray_training_loss", "ray_counterray_training_score",
        "ray_counterray_training_images_per_second", "ray_counterray_training_data_wait_seconds_total",
        "ray_train_controller_state", "ray_node_cpu_utilization", "ray_object_store_memory",
    }  # fmt: skip
    steps, missing, end = [], wanted, time.monotonic() + 400
    while missing or not steps:
        with urllib.request.urlopen(head.metrics, timeout=10) as page:
            lines = page.read().decode().splitlines()
        missing = wanted - {line.split("{")[0].split(" ")[0] for line in lines}
        # The run before it may still be shown.
        steps = [
            text for text in lines if text.startswith("ray_counterray_training_step{") and 'run="run"' in text
        ]
        assert time.monotonic() < end, missing
        time.sleep(1)
    assert 'stage="classifier"' in steps[0]
    twice = train(head, data, f"{tmp_path}/run/", steps=100_000)
    assert twice.returncode == 1
    assert f"Job {job['id']} is at work on {tmp_path}/run" in twice.stderr
    assert cluster(head, "stop", job["id"])["status"] == "STOPPED"


def test_an_audit_gives_its_verdicts_and_its_own_exit_status(
    head: Head, data: str, bundle: str, tmp_path: Path
) -> None:
    small = {"studies": "48", "chunk_studies": "16", "split": "train", "training_patients": "warn"}
    small |= {"resources.workers": "1", "audit.minimum_patients": "4"}
    small |= {"audit.resamples": "200", "audit.permutations": "199"}
    words = ("audit", "--classifier", bundle, "--generator", "exact", "--data", data, "--attribute", "sex")
    done = submit(head, *words, "--out", f"{tmp_path}/audit", **small)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "audit" / "report.html").is_file()

    more = ("--classifier", f"{tmp_path}/none.onnx", "--out", f"{tmp_path}/audit")
    incomplete = submit(head, *words, *more, **small)
    assert incomplete.returncode == 3, incomplete.stdout[-3000:]
    assert "error: Without a verdict" in incomplete.stdout


def test_a_job_that_fails_says_why_and_fails_the_command(head: Head, data: str, tmp_path: Path) -> None:
    places = ("--model", f"{tmp_path}/none", "--data", data, "--out", f"{tmp_path}/report")
    done = submit(head, "evaluate", *places, flags=("--json",))
    assert done.returncode == 1
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["status"], result["exit_status"]) == ("FAILED", 1)
    assert "error: " in done.stdout
    assert str(tmp_path / "none") in done.stdout
    listed = cluster(head, "list")["jobs"]
    assert listed[0]["id"] == result["id"]
    assert listed[0]["out"] == f"{tmp_path}/report"
    again = jobs(head, "cluster", "logs", result["id"], "--address", head.url)
    assert again.returncode == 1
    assert "error: " in again.stdout


def test_a_wrong_token_and_none_are_told_apart(head: Head, tmp_path: Path) -> None:
    wrong = jobs(head, "cluster", "list", "--address", head.url, RAY_AUTH_TOKEN="not-the-token")
    assert wrong.returncode == 1
    assert f"error: The head at {head.url} refuses the token" in wrong.stderr
    assert "not-the-token" not in wrong.stderr
    none = jobs(head, "cluster", "list", "--address", head.url, RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    assert none.returncode == 1
    assert "wants a token, and none was sent" in none.stderr
    for done in (wrong, none):
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(head.token)
    by_file = jobs(head, "cluster", "list", "--address", head.url, RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    assert by_file.returncode == 0, by_file.stderr


def test_a_job_that_is_not_known_and_a_server_that_is_no_head(head: Head) -> None:
    unknown = jobs(head, "cluster", "stop", "train-none", "--address", head.url)
    assert unknown.returncode == 1
    assert "knows no job train-none" in unknown.stderr
    with _page() as url:
        stranger = jobs(head, "cluster", "list", "--address", url)
    assert stranger.returncode == 1
    assert f"The head at {url}" in stranger.stderr
    assert "Traceback" not in stranger.stderr


class _page:
    """A web server that is no head."""

    class _Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: Any) -> None:
            return

    def __enter__(self) -> str:
        self.server = HTTPServer(("127.0.0.1", 0), self._Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
