"""Jobs as a user runs them: each in a process of its own, with a Ray of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from tests.conftest import ROOT


def own_ray(environment: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment, changed, without the Ray that it is joined to."""
    values = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    values.pop("RAY_ADDRESS", None)
    return {**values, **(environment or {})}


def command(job: str, *arguments: str) -> list[str]:
    """The line that runs a job and ends with its result as JSON."""
    return [sys.executable, "-m", "jobs", job, *arguments, "--json"]


def start(
    line: list[str], environment: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """A running job; ``options`` are of ``subprocess.Popen``."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=ROOT, env=own_ray(environment), text=True, **{**pipes, **options})


def finish(
    line: list[str], environment: dict[str, str] | None = None, *, seconds: float = 600
) -> tuple[str, str]:
    """Standard output and error of a job that must succeed."""
    output, errors = (process := start(line, environment)).communicate(timeout=seconds)
    assert process.returncode == 0, errors[-3000:]
    return output, errors
