"""Audits as Ray jobs: asked for here, run by ``python -m jobs audit``, remembered on storage.

Each audit has a folder. ``request.json`` is written before anything runs, ``state.json`` when it has ended;
what lies between is asked of Ray. Serve, the gateway and the cluster's head may restart in between: a job
that Ray no longer knows is submitted again, and goes on from what it had written.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import secrets
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import counterray
from counterray.audits.report import verdicts_of
from counterray.storage import Location, MissingError, resolve
from serve.problems import ProblemError
from serve.schemas import Audit, AuditRequest, AuditState
from serve.settings import Settings

logger = logging.getLogger(__name__)

EXACT = "exact"
REQUEST, STATE, RESULTS = "request.json", "state.json", "results"
REPORT = f"{RESULTS}/report.html"
AUDIT = f"{RESULTS}/audit.json"

MOST_ATTEMPTS = 3
"""Times that a job which vanished is submitted."""

_ENDED: Mapping[str, AuditState] = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}
_RUNNING = ("PENDING", "RUNNING")
_ERROR = re.compile(r"^error: (.+)$", re.MULTILINE)


class Jobs(Protocol):
    """Ray's jobs, as `ray.job_submission.JobSubmissionClient` has them."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> str:
        """Starts a job."""
        ...

    def get_job_status(self, job_id: str) -> Any:
        """Its status; raises `RuntimeError` for a job that is not known."""
        ...

    def get_job_logs(self, job_id: str) -> str:
        """What it wrote."""
        ...

    def stop_job(self, job_id: str) -> bool:
        """Ends it."""
        ...


class Auditor:
    """The audits of a server. Its methods wait for storage and for Ray: call them in a thread.

    Args:
        settings: The server's.
        jobs: Ray's jobs.
    """

    def __init__(self, settings: Settings, jobs: Jobs) -> None:
        self.settings, self.jobs = settings, jobs
        self.out = resolve(settings.audits.out)

    def submit(self, request: AuditRequest) -> Audit:
        """Writes the request down and runs it as soon as its turn comes.

        Raises:
            ProblemError: If it names something outside the roots, or too many wait.
            StorageError: If storage cannot be used.
        """
        for classifier in request.classifiers:
            self._require_classifier(classifier)
        self._require_below_roots("data", request.data)
        if request.generator != EXACT and request.generator not in self.settings.models:
            raise ProblemError("unknown-model", f"generator = {request.generator!r}.")
        waiting = sum(audit.state == "queued" for audit in self.listed())
        if waiting >= self.settings.audits.queued:
            raise ProblemError("overloaded", f"{waiting} audits wait already.", {"Retry-After": "60"})
        name = secrets.token_hex(16)
        created = datetime.now(UTC).isoformat()
        (self.out / name / REQUEST).write_json(
            {"request": request.model_dump(mode="json"), "created": created, "attempts": 0}
        )
        with suppress(ProblemError):  # Where Ray cannot be asked now, it waits for the next round.
            self.advance()
        return self.find(name)

    def find(self, name: str) -> Audit:
        """An audit's state.

        Raises:
            ProblemError: If there is no such audit.
            StorageError: If storage cannot be used.
        """
        try:
            stored = (self.out / name / REQUEST).read_json()
        except MissingError:
            raise ProblemError("unknown-audit", f"id = {name}.") from None
        return self._described(name, stored)

    def listed(self) -> list[Audit]:
        """All audits, the newest first."""
        names = {posixpath.dirname(file) for file in self.out.files() if file.count("/") == 1}
        audits = [self.find(name) for name in names if (self.out / name / REQUEST).exists()]
        return sorted(audits, key=lambda audit: audit.created, reverse=True)

    def report(self, name: str) -> bytes:
        """The report of an audit that has succeeded.

        Raises:
            ProblemError: If there is no such audit, or it has no report.
            StorageError: If storage cannot be used.
        """
        audit = self.find(name)
        if audit.state != "succeeded":
            raise ProblemError("audit-not-done", f"Its state is {audit.state}. {audit.message}".strip())
        return (self.out / name / REPORT).read_bytes()

    def delete(self, name: str) -> None:
        """Stops an audit that runs, and deletes all that it wrote.

        Raises:
            ProblemError: If there is no such audit.
            StorageError: If storage cannot be used.
        """
        if self.find(name).state in ("queued", "running"):
            attempts = int((self.out / name / REQUEST).read_json()["attempts"])
            if attempts and self._status(_job(name, attempts)) in _RUNNING:
                self.jobs.stop_job(_job(name, attempts))
        (self.out / name).delete()

    def advance(self) -> list[Audit]:
        """Starts audits whose turn has come, the oldest first, and returns all; called again and again."""
        audits = self.listed()
        free = self.settings.audits.running - sum(audit.state == "running" for audit in audits)
        queued = [audit for audit in reversed(audits) if audit.state == "queued"]
        for audit in queued[: max(0, free)]:
            self._start(audit)
        return audits

    def _start(self, audit: Audit) -> None:
        place = self.out / audit.id
        stored = (place / REQUEST).read_json()
        attempts = int(stored["attempts"]) + 1
        if attempts > MOST_ATTEMPTS:
            self._end(place, "failed", f"The job vanished {MOST_ATTEMPTS} times; see the cluster's logs.")
            return
        # Two gateways may come here at once: Ray takes a submission's name once.
        try:
            self.jobs.submit_job(
                entrypoint=self._command(audit),
                submission_id=_job(audit.id, attempts),
                runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
            )
        except (RuntimeError, ValueError) as error:
            if self._status(_job(audit.id, attempts)) is None:
                logger.warning("audit %s was not submitted and waits: %s", audit.id, error)
                return
        (place / REQUEST).write_json({**stored, "attempts": attempts})

    def _command(self, audit: Audit) -> str:
        request, settings = audit.request, self.settings.audits
        model = request.generator
        generator = model if model == EXACT else self.settings.models[model].bundle
        words = [sys.executable, "-m", "jobs", "audit", "--generator", generator, "--data", request.data]
        words += ["--out", (self.out / audit.id / RESULTS).uri]
        words += [word for name in request.classifiers for word in ("--classifier", name)]
        words += [word for name in request.attributes for word in ("--attribute", name)]
        if model != EXACT:
            words += [word for uri in self.settings.judges for word in ("--judge", uri)]
        asked = dict(settings.settings) | ({"studies": request.studies} if request.studies else {})
        words += [word for name, value in asked.items() for word in ("--set", f"{name}={value}")]
        return shlex.join(words)

    def _described(self, name: str, stored: Mapping[str, Any]) -> Audit:
        place = self.out / name
        ended: Mapping[str, Any] = {}
        if (place / STATE).exists():
            ended = (place / STATE).read_json()
        elif stored["attempts"]:
            ended = self._ended(place, _job(name, int(stored["attempts"])))
        state: AuditState = ended.get("state", "queued")
        return Audit(
            id=name,
            state=state,
            created=stored["created"],
            finished=ended.get("finished"),
            request=AuditRequest.model_validate(stored["request"]),
            message=ended.get("message", ""),
            verdicts=ended.get("verdicts", {}),
        )

    def _ended(self, place: Location, job: str) -> Mapping[str, Any]:
        """What is known of an audit that was submitted; written down once it has ended."""
        status = self._status(job)
        if status in _RUNNING:
            return {"state": "running"}
        # A report says what could be audited, which may be nothing; the job that is run again says why.
        done = (place / REPORT).exists() and bool(verdicts_of((place / AUDIT).read_json()))
        if status is None:
            return self._end(place, "succeeded", "") if done else {"state": "queued"}
        if status == "FAILED":
            # A job whose report leaves out some of what was asked for fails, too, and says what.
            return self._end(place, "succeeded" if done else "failed", self._why(job))
        return self._end(place, _ENDED[status], "")

    def _end(self, place: Location, state: AuditState, message: str) -> Mapping[str, Any]:
        verdicts: dict[str, dict[str, str]] = {}
        if state == "succeeded":
            verdicts = verdicts_of((place / AUDIT).read_json())
        finished = datetime.now(UTC).isoformat()
        ended = {"state": state, "finished": finished, "message": message, "verdicts": verdicts}
        (place / STATE).write_json(ended)
        return ended

    def _status(self, job: str) -> str | None:
        try:
            return str(getattr(self.jobs.get_job_status(job), "value", ""))
        except RuntimeError as error:
            # Ray answers 404 for a job of before its head restarted; anything else is no answer.
            if "does not exist" not in str(error) and "404" not in str(error):
                raise ProblemError("unavailable", "Ray's jobs cannot be asked now.") from error
            return None

    def _why(self, job: str) -> str:
        try:
            found = _ERROR.findall(self.jobs.get_job_logs(job))
        except RuntimeError:
            found = []
        return found[-1] if found else "The job failed; see its log, which Ray keeps under its name."

    def _require_classifier(self, address: str) -> None:
        """Only a bundle or an ONNX file, below a root: no code, no pickle, nothing from the network."""
        place = self._require_below_roots("classifiers", address)
        if not address.endswith(".onnx") and not (place / "manifest.json").exists():
            raise ProblemError(
                "audit-refused", f"classifiers: {address!r} is neither a bundle nor an .onnx file."
            )

    def _require_below_roots(self, what: str, address: str) -> Location:
        scheme = address.partition("://")[0] if "://" in address else ""
        plain = address.isprintable() and not any(part in (".", "..") for part in address.split("/"))
        if scheme not in ("", "s3") or not plain:
            raise ProblemError("audit-refused", f"{what}: {address!r} is no plain path or s3:// URI.")
        inside = address if scheme else os.path.realpath(os.path.expanduser(address))
        for root in self.settings.audits.roots:
            outside = root if "://" in root else os.path.realpath(root)
            if inside.startswith(outside.rstrip("/") + "/"):
                return resolve(address)
        raise ProblemError("audit-refused", f"{what}: {address!r} is not below one of the server's roots.")


def _job(name: str, attempts: int) -> str:
    return f"audit-{name}-{attempts}"


def _python_path() -> str:
    """Where this very code is, for a job that starts in a folder of its own."""
    library, checkout = Path(counterray.__file__).parents[1], Path(__file__).parents[1]
    return os.pathsep.join(map(str, (library, checkout)))
