"""Ray's jobs, without Ray."""

import shlex
from enum import Enum


class Status(Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class Jobs:
    """Ray's jobs as their client shows them; ``forget`` is a restart of the cluster's head."""

    def __init__(self):
        self.commands, self.status, self.logs, self.away, self.full = {}, {}, "", False, False

    def submit_job(self, *, entrypoint, submission_id, runtime_env):
        if self.full:
            raise RuntimeError("Request failed with status code 500: No available agent to submit job.")
        if submission_id in self.status:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        self.commands[submission_id] = shlex.split(entrypoint)
        self.status[submission_id] = Status.RUNNING
        return submission_id

    def get_job_status(self, job_id):
        if self.away:
            raise RuntimeError("Request failed with status code 503: try later.")
        if job_id not in self.status:
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")
        return self.status[job_id]

    def get_job_logs(self, job_id):
        return self.logs

    def stop_job(self, job_id):
        self.status[job_id] = Status.STOPPED
        return True

    def forget(self):
        self.status.clear()
