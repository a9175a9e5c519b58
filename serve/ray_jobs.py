"""Ray's jobs, as audits use them: whatever keeps Ray from answering is one error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ray.exceptions import RayError

from serve.problems import ProblemError

_NOT_KNOWN = "Request failed with status code 404"
"""How Ray's client begins what it says of a job that its cluster does not know."""

_ERROR = re.compile(r"^error: (.+)$", re.MULTILINE)


class Client(Protocol):
    """What is used of `ray.job_submission.JobSubmissionClient`."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> str:
        """Starts a job."""
        ...

    def get_job_status(self, job_id: str) -> Any:
        """Its status."""
        ...

    def get_job_logs(self, job_id: str) -> str:
        """What it wrote."""
        ...

    def stop_job(self, job_id: str) -> bool:
        """Asks it to end, and does not wait until it has."""
        ...


class RayJobs:
    """Implements `serve.auditor.Jobs` by a cluster's jobs.

    Every method raises `ProblemError` ``unavailable`` where the cluster cannot be asked, and nothing else.

    Args:
        client: Of the cluster.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def submit(self, job: str, command: str, *, variables: dict[str, str]) -> None:
        """Starts a job, unless one of that name was started before.

        Args:
            job: Its name, which Ray takes once.
            command: What it runs.
            variables: Of its environment.
        """
        try:
            with _answering():
                self._client.submit_job(
                    entrypoint=command, submission_id=job, runtime_env={"env_vars": variables}
                )
        except ProblemError:
            if self.status(job) is None:
                raise

    def status(self, job: str) -> str | None:
        """Its status in Ray's words, such as ``RUNNING``; ``None`` for a job that the cluster does not know.

        It knows none of before its head restarted.
        """
        with _answering():
            try:
                return str(self._client.get_job_status(job).value)
            except RuntimeError as error:
                if _unknown(error):
                    return None
                raise

    def complaint(self, job: str) -> str:
        """The last error that it reported; empty where it reported none or its log is gone."""
        with _answering():
            try:
                found = _ERROR.findall(self._client.get_job_logs(job))
            except (
                RuntimeError
            ):  # Such as of a node that is no more: that must not keep an audit from ending.
                return ""
        return str(found[-1]) if found else ""

    def stop(self, job: str) -> None:
        """Asks it to end; nothing happens where it has, or never was."""
        with _answering():
            try:
                self._client.stop_job(job)
            except RuntimeError as error:
                if not _unknown(error):
                    raise


def _unknown(error: RuntimeError) -> bool:
    return str(error).startswith(_NOT_KNOWN)


@contextmanager
def _answering() -> Iterator[None]:
    # Ray's client lets errors of requests through, which are OSErrors, reports other answers than 200 as
    # RuntimeErrors, and answers that it cannot read as ValueErrors.
    try:
        yield
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ProblemError("unavailable", "Ray's jobs cannot be asked now.") from error
