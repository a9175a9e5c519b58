"""A job that was sent: its log as it is written, and how it ended."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from typing import Any

from jobs.submission.client import translated
from jobs.submission.errors import AwayError, SubmissionError

LOST_SECONDS = 120.0
"""How long a head may be away while its job is followed."""

STOP_SECONDS = 60.0
"""How long a job may take to end; Ray kills it 3 s after it was asked to."""

_RETRY_SECONDS = 2.0

STOPPED = 130
"""Exit status for a job that was stopped, as a shell has it for Ctrl-C."""


@dataclass(frozen=True)
class Submitted:
    """A job that the cluster knows.

    Attributes:
        id: Its submission id.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        exit_status: That of its command; 1 for a failure before or beside it, 130 where it was stopped, and
            null while it runs.
        message: What Ray says of it.
        started: When it was sent, as Unix time [s].
        line: Its command.
        out: Where its results go; empty for a job that was not sent from here.
    """

    id: str
    status: str
    exit_status: int | None
    message: str
    started: float
    line: str
    out: str

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.exit_status is not None


def described(details: Any) -> Submitted:
    """What Ray's ``JobDetails`` say."""
    status = str(getattr(details.status, "value", details.status))
    failed = details.driver_exit_code or 1
    return Submitted(
        id=str(details.submission_id),
        status=status,
        exit_status={"SUCCEEDED": 0, "FAILED": failed, "STOPPED": STOPPED}.get(status),
        message=str(details.message or "").strip(),
        started=float(details.start_time or 0) / 1000,
        line=str(details.entrypoint),
        out=str((details.metadata or {}).get("out", "")),
    )


def find(client: Any, name: str) -> Submitted:
    """A job by its submission id.

    Raises:
        SubmissionError: If the cluster does not know it, or does not answer.
    """
    with translated(client.get_address()):
        try:
            return described(client.get_job_info(name))
        except RuntimeError as error:
            if "404" not in str(error):
                raise
    raise SubmissionError(
        f"The cluster at {client.get_address()} knows no job {name}. python -m jobs cluster list "
        "shows all. A head that was started anew has forgotten those of before; the same command sent again "
        "goes on."
    )


def find_all(client: Any) -> list[Submitted]:
    """The jobs that were submitted to the cluster, the newest first."""
    with translated(client.get_address()):
        jobs = [described(details) for details in client.list_jobs() if details.submission_id]
    return sorted(jobs, key=lambda job: job.started, reverse=True)


def stop(client: Any, name: str) -> Submitted:
    """Ends a job and waits for its end; nothing happens to one that has ended.

    Raises:
        SubmissionError: If the cluster does not know it, or it has not ended after `STOP_SECONDS`.
    """
    found, end = find(client, name), time.monotonic() + STOP_SECONDS
    if not found.ended:
        with translated(client.get_address()):
            client.stop_job(name)
    while not found.ended:
        if time.monotonic() > end:
            raise SubmissionError(
                f"Job {name} has been asked to stop and has not within {STOP_SECONDS:.0f} s."
            )
        time.sleep(0.5)
        found = find(client, name)
    return found


def follow(client: Any, name: str) -> Submitted:
    """Writes a job's log to standard output as it comes, until the job has ended.

    A head that is away for less than `LOST_SECONDS` is waited for; nothing is written twice.

    Raises:
        SubmissionError: If the head stays away, or was started anew and has forgotten the job.
    """
    log, heard, last = _Log(client, name), time.monotonic(), False
    try:
        while True:
            whole = asyncio.run(log.tail())
            try:
                found = find(client, name)
            except AwayError as error:
                if time.monotonic() - heard > LOST_SECONDS:
                    raise SubmissionError(f"{error} {_goes_on(name)}") from None
                time.sleep(_RETRY_SECONDS)
                continue
            heard = time.monotonic()
            if found.ended and (whole or last):
                return found
            last = found.ended  # what a broken connection kept back is asked for once more
            time.sleep(0.2 if whole else _RETRY_SECONDS)
    except KeyboardInterrupt:
        raise SubmissionError(f"Not followed any more. {_goes_on(name)}") from None


def _goes_on(name: str) -> str:
    return (
        f"Job {name} may go on without us: python -m jobs cluster logs {name} follows it again, python -m "
        f"jobs cluster stop {name} ends it."
    )


class _Log:
    """What a job has written so far, and how much of it was passed on."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name, self.passed_on = client, name, 0

    async def tail(self) -> bool:
        """Passes on what is new until the job ends; false where the connection broke before."""
        import aiohttp

        seen = 0
        try:
            async for text in self.client.tail_job_logs(self.name):
                sys.stdout.write(text[max(0, self.passed_on - seen) :])
                sys.stdout.flush()
                seen += len(text)
                self.passed_on = max(self.passed_on, seen)
        except (RuntimeError, OSError, aiohttp.ClientError):
            return False
        return True
