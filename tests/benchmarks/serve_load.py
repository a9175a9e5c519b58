"""The server under load, against the same model in a plain FastAPI application that answers in a loop.

    python -m tests.benchmarks.serve_load [--config serve/configs/local.yaml] [--model pathology]
        [--clients 1 32] [--seconds 60]

The peer is what one writes in an afternoon: a FastAPI route that decodes the image, runs the same bundle and
the same judges on it and encodes the answer, one request at a time, with one thread of torch (two are slower
for models as small as the demo's: ``--threads``). Both are asked for new counterfactuals of a sample, each
with a seed of its own, by locust in a process of its own (``pip install -e .[benchmarks]``). Printed for each
number of clients: requests/s and their ratio (goal: >= 2 at 32, >= 0.9 at 1), p50, p95 and p99, the answers
that failed, and at one client what the server adds to a request (goal: <= 15 ms at p50). Both are warmed up
under the greatest load, so that replicas that autoscaling adds are there.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch
import uvicorn
from fastapi import FastAPI
from rich.console import Console
from rich.table import Table

from counterray.models.generator import Edit
from serve.decoding import read_image, to_model_size
from serve.engine import Engine
from serve.jury import Jury
from serve.local import first_key, read_deployment, settings_of
from serve.pictures import given_picture
from serve.problems import ProblemError
from serve.samples import Samples
from serve.schemas import CounterfactualRequest
from serve.settings import Settings, UploadSettings
from serve.work import Work

CLIENT = Path(__file__).with_name("serve_load_client.py")
PORT = 8390


def peer(settings: Settings, model: str, threads: int) -> FastAPI:
    """The plain application: a route, a lock, the model."""
    torch.set_num_threads(threads)
    jury = Jury.open(settings.judges, torch.device("cpu"))
    engine = Engine.open(model, settings.models[model], jury, rows=1)
    size, lock, app = int(engine.bundle.metadata["image_size"]), threading.Lock(), FastAPI()

    @app.post("/v1/counterfactuals")
    def counterfactuals(asked: CounterfactualRequest) -> dict[str, Any]:
        image = to_model_size(read_image(base64.b64decode(asked.image), UploadSettings().most_pixels), size)
        observed = None if asked.observed == "infer" else asked.observed
        edit = Edit(do=asked.do, prompt=asked.prompt, severity=asked.severity)
        with lock:
            [made] = engine.do([Work(edit=edit, image=image, observed=observed, seeds=asked.seeds)])
        if isinstance(made, ProblemError):
            raise made
        return {"images": [one.model_dump() for one in made.images], "input": made.input}

    return app


@dataclass(frozen=True)
class Load:
    """What clients saw.

    Attributes:
        rate: Answers a second that did not fail.
        failures: Requests that failed.
        milliseconds: p50, p95 and p99 of all answers.
    """

    rate: float
    failures: int
    milliseconds: tuple[int, int, int]


def load(url: str, asked: dict[str, Any], *, clients: int, seconds: int, key: str = "") -> Load:
    """Runs locust against a server."""
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        request.write_text(json.dumps(asked))
        command = [sys.executable, "-m", "locust", "--headless", "--json", "--locustfile", str(CLIENT)]
        command += ["--host", url, "--users", str(clients), "--spawn-rate", str(clients)]
        command += ["--run-time", f"{seconds}s", "--loglevel", "ERROR", "--only-summary"]
        given = {"COUNTERRAY_LOAD_REQUEST": str(request), "COUNTERRAY_LOAD_KEY": key}
        done = subprocess.run(
            command,
            env={**os.environ, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    [found] = json.loads(done.stdout)
    times = {float(value): count for value, count in found["response_times"].items()}
    lasted = found["last_request_timestamp"] - found["start_time"]
    answered = found["num_requests"] - found["num_failures"]
    p50, p95, p99 = (percentile(times, share) for share in (0.50, 0.95, 0.99))
    return Load(answered / lasted, found["num_failures"], (p50, p95, p99))


def percentile(times: dict[float, int], share: float) -> int:
    """The time [ms] that a share of the requests stayed below."""
    wanted, seen = share * sum(times.values()), 0
    for milliseconds, count in sorted(times.items()):
        seen += count
        if seen >= wanted:
            return round(milliseconds)
    raise ValueError("No request was answered.")


@contextmanager
def serving(command: Sequence[str]) -> Iterator[str]:
    """Runs a server in a process of its own, and yields its URL once it is ready."""
    url = f"http://127.0.0.1:{PORT}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 300
            while not answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{' '.join(command)} did not start:\n{log.read().decode()}")
                time.sleep(1)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def answers(url: str) -> bool:
    """Whether a server has begun to answer."""
    try:
        return httpx2.get(f"{url}/openapi.json").status_code == 200
    except httpx2.HTTPError:
        return False


def main() -> None:
    """Measures both, one after the other, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("serve/configs/local.yaml"))
    parser.add_argument("--model", default="pathology")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the plain application")
    parser.add_argument("--ask", type=json.loads, default={"do": {"finding.pleural_effusion": 1}})
    parser.add_argument("--peer", action="store_true", help="run the plain application; used by this script")
    parser.add_argument("overrides", nargs="*", help="settings of the server, a.b=c")
    given = parser.parse_args()
    settings = settings_of(read_deployment(given.config, given.overrides))
    if given.peer:
        uvicorn.run(peer(settings, given.model, given.threads), port=PORT, log_level="error")
        return
    sample = given_picture(Samples.read(settings.samples).anatomy(0))
    asked = {"model": given.model, "image": sample, **given.ask}
    own = [sys.executable, "-m", "tests.benchmarks.serve_load", "--peer", "--config", str(given.config)]
    own += ["--threads", str(given.threads)]
    ours = [sys.executable, "-m", "jobs", "serve", "--config", str(given.config), "--port", str(PORT)]
    overrides = [*given.overrides, "limits.rate=1000000/minute"]  # one key asks for all
    ours += [word for override in overrides for word in ("--set", override)]
    key = first_key(settings).read_text().strip()
    found = {
        "plain FastAPI": measured([*own, "--model", given.model, *given.overrides], asked, given),
        "counterray": measured(ours, asked, given, key),
    }
    report(found, given.clients)


def measured(command: Sequence[str], asked: dict[str, Any], given: Any, key: str = "") -> dict[int, Load]:
    """A server's answers to each number of clients."""
    with serving(command) as url:
        load(url, asked, clients=max(given.clients), seconds=30, key=key)
        return {n: load(url, asked, clients=n, seconds=given.seconds, key=key) for n in given.clients}


def report(found: dict[str, dict[int, Load]], clients: Sequence[int]) -> None:
    """Prints what was measured."""
    table = Table("clients", "server", "requests/s", "ratio", "p50 / p95 / p99 [ms]", "failed")
    for count in clients:
        plain = found["plain FastAPI"][count].rate
        for name, loads in found.items():
            one = loads[count]
            times = " / ".join(map(str, one.milliseconds))
            table.add_row(
                str(count), name, f"{one.rate:.2f}", f"{one.rate / plain:.2f}", times, str(one.failures)
            )
    Console().print(table)
    if 1 in clients:
        added = found["counterray"][1].milliseconds[0] - found["plain FastAPI"][1].milliseconds[0]
        Console().print(f"at one client the server adds {added} ms to a request (p50)")


if __name__ == "__main__":
    main()
