"""The head of a cluster of its own, as ``ray start`` makes one on a host."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.commands import own_ray

START_SECONDS = 120


@dataclass(frozen=True)
class Head:
    """A head that runs.

    Attributes:
        url: Its dashboard.
        metrics: What its node shows to Prometheus.
        token: What it asks for.
        folder: Its logs and packages.
    """

    url: str
    metrics: str
    token: str
    folder: Path

    def environment(self, **changes: str) -> dict[str, str]:
        """Variables of a client that knows the token; one with an empty value is left out."""
        values = own_ray({"RAY_AUTH_TOKEN": self.token, **changes})
        del values["RAY_AUTH_MODE"]
        return {name: value for name, value in values.items() if value}


@contextmanager
def head_with_token(*, cpus: int = 4) -> Iterator[Head]:
    """Runs a head that asks for a token, beside any other Ray of this machine."""
    dashboard, gcs, agent, client, metrics = _free_ports(5)
    # Ray's sockets lie below: their paths may not exceed about 100 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        urls = (f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics")
        head = Head(*urls, secrets.token_hex(32), Path(folder))
        ray = Path(sys.executable).with_name("ray")
        options = {
            **{"port": gcs, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent},
            **{"ray-client-server-port": client, "metrics-export-port": metrics},
            **{"min-worker-port": 0, "max-worker-port": 0},
            **{"num-cpus": cpus, "object-store-memory": 200 << 20, "temp-dir": folder},
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        with (head.folder / "start.log").open("wb") as log:
            process = subprocess.Popen(
                [str(ray), "start", "--head", "--block", "--disable-usage-stats", *flags],
                env={
                    **head.environment(),
                    **{"RAY_AUTH_MODE": "token", "PATH": f"{ray.parent}:{os.environ['PATH']}"},
                    **{"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "PYTHONPATH": ""},
                    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody waits for its work
                },
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait(head, process)
            yield head
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()  # what it started goes with it
                process.wait()
            shutil.rmtree(head.folder, ignore_errors=True)


def _wait(head: Head, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    request = urllib.request.Request(
        f"{head.url}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"}
    )
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            said = (head.folder / "start.log").read_text(errors="replace")[-2000:]
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
