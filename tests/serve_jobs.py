"""Ray's jobs, without Ray."""

import shlex
from enum import Enum

import requests


class Status(Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class Jobs:
    """Ray's jobs as their client shows them, errors included; ``forget`` is a restart of the cluster's head.

    Attributes:
        away: Raised by every method: the cluster does not answer.
        full: Whether no job is taken.
        lingers: Whether jobs that are asked to end go on for a while.
        logs: What every job wrote; ``None`` where that is lost.
        asked: Names of jobs whose status was asked for.
    """

    def __init__(self):
        self.commands, self.status, self.logs, self.asked = {}, {}, "", []
        self.away, self.full, self.lingers = None, False, False

    def submit_job(self, *, entrypoint, submission_id, runtime_env):
        self._answer()
        if self.full:
            raise RuntimeError("Request failed with status code 500: No available agent to submit job.")
        if submission_id in self.status:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        self.commands[submission_id] = shlex.split(entrypoint)
        self.status[submission_id] = Status.RUNNING
        return submission_id

    def get_job_status(self, job_id):
        self.asked.append(job_id)
        self._answer()
        self._require(job_id)
        return self.status[job_id]

    def get_job_logs(self, job_id):
        self._answer()
        self._require(job_id)
        if self.logs is None:
            raise RuntimeError("Request failed with status code 500: no agent has the log.")
        return self.logs

    def stop_job(self, job_id):
        self._answer()
        self._require(job_id)
        if not self.lingers:
            self.status[job_id] = Status.STOPPED
        return True

    def forget(self):
        self.status.clear()

    def _answer(self):
        if self.away is not None:
            raise self.away

    def _require(self, job_id):
        if job_id not in self.status:
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")


AWAY = (
    requests.exceptions.ConnectionError("Connection refused"),
    requests.exceptions.ReadTimeout("read timed out"),
    requests.exceptions.JSONDecodeError("Expecting value", "<html>", 0),
    ConnectionError("Failed to connect to Ray"),
    RuntimeError("Request failed with status code 503: try later."),
    RuntimeError("Request failed with status code 500: audit-404404 does not exist on agent 404."),
)
"""What Ray's client raises where the cluster does not answer."""
