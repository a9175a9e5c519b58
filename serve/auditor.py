"""Audits as Ray jobs: asked for here, run by ``python -m jobs audit``, remembered on storage.

A request is written down before anything runs, and its state when it has ended; what lies between is asked of
Ray. Serve, the gateway and the cluster's head may restart in between: a job that Ray no longer knows is
submitted again, and goes on from what it had written.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

import counterray
from counterray.storage import MissingError, StorageError, resolve
from serve.audit_records import REPORT, RESULTS, Entry, Record, Records
from serve.audit_requests import EXACT, command_of, require_admissible
from serve.problems import ProblemError, problem_of
from serve.schemas import Audit, AuditRequest, AuditState
from serve.settings import Settings

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
"""Times that a job which vanished is submitted."""

_ENDED: dict[str, AuditState] = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}
_RUNNING = ("PENDING", "RUNNING")

_Of = TypeVar("_Of", str, Entry)
_Found = TypeVar("_Found")


class Jobs(Protocol):
    """Jobs of a cluster, as `serve.ray_jobs.RayJobs` has them; every method may raise ``unavailable``."""

    def submit(self, job: str, command: str, *, variables: dict[str, str]) -> None:
        """Starts a job, unless one of that name was started before."""
        ...

    def status(self, job: str) -> str | None:
        """Its status; ``None`` for a job that is not known."""
        ...

    def complaint(self, job: str) -> str:
        """The last error that it reported."""
        ...

    def stop(self, job: str) -> None:
        """Asks it to end, and does not wait until it has."""
        ...


class Auditor:
    """The audits of a server. Its methods wait for storage and for Ray: call them in a thread.

    Every method raises `StorageError` where storage cannot be used.

    Args:
        settings: The server's.
        jobs: Those of the cluster that runs audits.
        joins: Address of the Ray that a job joins; empty for the one that runs the job.
    """

    def __init__(self, settings: Settings, jobs: Jobs, *, joins: str = "") -> None:
        self.settings, self.jobs, self.joins = settings, jobs, joins
        self.out = resolve(settings.audits.out)
        self.records = Records(self.out)

    def submit(self, request: AuditRequest, *, owner: str) -> Audit:
        """Writes the request down and runs it as soon as its turn comes.

        Raises:
            ProblemError: If it names something that is not there or outside the roots, or too many wait.
        """
        require_admissible(request, self.settings)
        limits = self.settings.audits
        there = sum(not entry.ended for entry in self.records.all())
        if there >= limits.running + limits.queued:
            raise ProblemError("overloaded", f"{there} audits run or wait already.", {"Retry-After": "60"})
        record = Record(owner=owner, request=request, created=datetime.now(UTC))
        entry = self.records.write(secrets.token_hex(16), record)
        # It is asked for now, whatever fails from here on: it then waits for the next round.
        try:
            self.advance()
            return self.find(entry.name, owner=owner)
        except (ProblemError, StorageError) as error:
            logger.warning("audit %s waits: %s", entry.name, problem_of(error, doing="start it").detail)
            return entry.audit()

    def find(self, name: str, *, owner: str) -> Audit:
        """An audit's state.

        Raises:
            ProblemError: If the owner has no such audit, or Ray cannot be asked.
        """
        return self._state(self._own(name, owner))

    def listed(self, *, owner: str) -> list[Audit]:
        """All audits of an owner, the newest first.

        Raises:
            ProblemError: If Ray cannot be asked.
        """
        audits = []
        for entry in self.records.all():
            if entry.record.owner == owner:
                try:
                    audits.append(self._state(entry))
                except MissingError:  # Deleted since it was listed.
                    continue
        return audits

    def report(self, name: str, *, owner: str) -> bytes:
        """The report of an audit that has succeeded.

        Raises:
            ProblemError: If the owner has no such audit, or it has no report.
        """
        audit = self.find(name, owner=owner)
        if audit.state != "succeeded":
            raise ProblemError("audit-not-done", f"Its state is {audit.state}. {audit.message}".strip())
        return (self.out / name / REPORT).read_bytes()

    def delete(self, name: str, *, owner: str) -> None:
        """Takes an audit away at once; its job is stopped, and what it wrote deleted, as soon as can be.

        Raises:
            ProblemError: If the owner has no such audit.
        """
        self._own(name, owner)
        self.records.delete(name)
        self._guarded(self._bury, name)

    def advance(self) -> list[Audit]:
        """Ends what was deleted and starts audits whose turn has come, the oldest first; called ever again.

        What one audit fails at is logged, and holds up none of the others.

        Returns:
            All audits whose state is known, as they were before.
        """
        for name in self.records.deleted():
            self._guarded(self._bury, name)
        looked = [(entry, self._guarded(self._state, entry)) for entry in reversed(self.records.all())]
        # One whose state is not known may run.
        free = self.settings.audits.running - sum(
            audit is None or audit.state == "running" for _, audit in looked
        )
        queued = [entry for entry, audit in looked if audit is not None and audit.state == "queued"]
        for entry in queued[: max(0, free)]:
            self._guarded(self._start, entry)
        return [audit for _, audit in looked if audit is not None]

    def _guarded(self, step: Callable[[_Of], _Found], audit: _Of) -> _Found | None:
        try:
            return step(audit)
        except Exception as error:
            name = audit.name if isinstance(audit, Entry) else audit
            said = problem_of(error, doing="advance an audit").detail
            logger.warning("audit %s waits for the next round: %s", name, said)
            return None

    def _own(self, name: str, owner: str) -> Entry:
        entry = self.records.find(name)
        if entry is None or entry.record.owner != owner:
            raise ProblemError("unknown-audit", f"id = {name}.")
        return entry

    def _state(self, entry: Entry) -> Audit:
        """What is known of it; written down once it has ended."""
        if entry.ended or not entry.record.attempts:
            return entry.audit()
        name, job = entry.name, _job(entry.name, entry.record.attempts)
        status = self.jobs.status(job)
        if status in _RUNNING:
            return entry.audit(state="running")
        # A report says what could be audited, which may be nothing; the job that is run again says why.
        done = bool(self.records.verdicts(name))
        if status is None:
            return entry.audit(**(self.records.end(name, "succeeded") if done else {}))
        if status == "FAILED":
            # A job whose report leaves out some of what was asked for fails, too, and says what.
            why = self.jobs.complaint(job) or "The job failed; see its log, which Ray keeps under its name."
            return entry.audit(**self.records.end(name, "succeeded" if done else "failed", why))
        return entry.audit(**self.records.end(name, _ENDED[status]))

    def _start(self, entry: Entry) -> None:
        name, request, attempts = entry.name, entry.record.request, entry.record.attempts + 1
        if attempts > MOST_ATTEMPTS:
            said = f"The job vanished {MOST_ATTEMPTS} times; see the cluster's logs."
            self.records.end(name, "failed", said)
            return
        if request.generator not in (EXACT, *self.settings.models):
            self.records.end(name, "failed", f"The server no longer has the model {request.generator!r}.")
            return
        command = command_of(request, self.settings, self.out / name / RESULTS, joins=self.joins)
        # Two gateways may come here at once: Ray takes a submission's name once.
        self.jobs.submit(_job(name, attempts), command, variables={"PYTHONPATH": _python_path()})
        self.records.write(name, entry.record.model_copy(update={"attempts": attempts}))

    def _bury(self, name: str) -> None:
        """Stops what a deleted audit runs and, once that has ended, erases what it wrote.

        Another gateway may just have started it, so that every name that its job can have is looked up.
        """
        jobs = [_job(name, attempt) for attempt in range(1, MOST_ATTEMPTS + 1)]
        running = [job for job in jobs if self.jobs.status(job) in _RUNNING]
        for job in running:
            self.jobs.stop(job)
        if not running:
            self.records.erase(name)


def _job(name: str, attempts: int) -> str:
    return f"audit-{name}-{attempts}"


def _python_path() -> str:
    """Where this very code is, for a job that starts in a folder of its own."""
    library, checkout = Path(counterray.__file__).parents[1], Path(__file__).parents[1]
    return os.pathsep.join(map(str, (library, checkout)))
