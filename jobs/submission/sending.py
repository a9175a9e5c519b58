"""Sends a job, unless one already works on the same results."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.submission.client import translated
from jobs.submission.command import JobCommand
from jobs.submission.errors import SubmissionError
from jobs.submission.following import find_all
from jobs.submission.package import Packages, runtime_environment


@dataclass(frozen=True)
class Request:
    """What a job's own process, the driver, is given; its workers ask for theirs themselves.

    Attributes:
        packages: Where its Python packages come from, see `runtime_environment`.
        variables: Environment variables, as ``NAME=VALUE``.
        cpus: CPUs that are reserved for it; with none it runs on the head.
        gpus: GPUs that are reserved for it.
        memory_gib: Memory that is reserved for it [GiB].
    """

    packages: Packages = "image"
    variables: Sequence[str] = ()
    cpus: float = 0.0
    gpus: float = 0.0
    memory_gib: float = 0.0


def send(client: Any, command: JobCommand, request: Request) -> str:
    """Uploads the checkout's code and starts the job; returns its submission id.

    Raises:
        SubmissionError: If a job is at work on the same results, or the cluster refuses this one.
    """
    environment = runtime_environment(request.packages, request.variables)
    with translated(client.get_address()):
        for job in find_all(client):
            if job.out == command.out and not job.ended:
                raise SubmissionError(
                    f"Job {job.id} is at work on {command.out} ({job.status.lower()}). Follow it with python "
                    f"-m jobs cluster logs {job.id}, or end it with python -m jobs cluster stop {job.id} and "
                    "submit again, which goes on from there."
                )
        return str(
            client.submit_job(
                entrypoint=command.line,
                submission_id=f"{command.job}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
                runtime_env=environment,
                metadata={"job": command.job, "out": command.out},
                entrypoint_num_cpus=request.cpus or None,
                entrypoint_num_gpus=request.gpus or None,
                entrypoint_memory=int(request.memory_gib * (1 << 30)) or None,
            )
        )
