"""Audits on storage: what was asked for, how it ended, what was deleted.

Each audit has a folder. A deleted one has a tombstone beside it, written first: from then on nobody finds it,
whatever other gateways, or its own job, which ends a little later, still write into the folder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from counterray.audits.report import verdicts_of
from counterray.config import Config
from counterray.storage import Location, MissingError
from serve.schemas import Audit, AuditRequest, AuditState

logger = logging.getLogger(__name__)

REQUEST, STATE, RESULTS = "request.json", "state.json", "results"
REPORT = f"{RESULTS}/report.html"
AUDIT = f"{RESULTS}/audit.json"
TOMBSTONE = ".deleted"
"""Ending of a tombstone's name."""

TOMBSTONE_SECONDS = 600.0
"""How long a tombstone stays at least; nobody is then still at what they began before it was there."""

_NAME = re.compile(r"[0-9a-f]{32}")


class Record(Config):
    """What ``request.json`` holds."""

    owner: str
    """Owner of the key that asked; the only one who finds it."""
    request: AuditRequest
    """What was asked."""
    created: datetime
    """When."""
    attempts: int = 0
    """Times that it was submitted."""


@dataclass(frozen=True)
class Entry:
    """An audit on storage.

    Attributes:
        name: Its identifier.
        record: What was asked.
        ended: What ``state.json`` holds; empty before it has ended.
    """

    name: str
    record: Record
    ended: Mapping[str, Any]

    def audit(self, **known: Any) -> Audit:
        """As clients see it.

        Args:
            **known: What is known of one that has not ended, such as ``state``; queued by default.
        """
        known = {"state": "queued", "finished": None, "message": "", "verdicts": {}, **known, **self.ended}
        return Audit(id=self.name, created=self.record.created, request=self.record.request, **known)


class Records:
    """All audits below a folder. Every method raises `StorageError` where storage cannot be used.

    Args:
        out: The folder.
    """

    def __init__(self, out: Location) -> None:
        self.out = out
        self._ended: dict[str, Entry] = {}
        """Those that have ended, which do not change."""

    def write(self, name: str, record: Record) -> Entry:
        """Writes a request down, or anew."""
        (self.out / name / REQUEST).write_json(record.model_dump(mode="json"))
        return Entry(name, record, {})

    def find(self, name: str) -> Entry | None:
        """An audit; ``None`` where there is none, or it is deleted."""
        return None if self._tombstone(name).exists() else self._read(name)

    def all(self) -> list[Entry]:
        """All that are not deleted, the newest first."""
        files = set(self.out.names())
        names = [name for name in files if _NAME.fullmatch(name) and f"{name}{TOMBSTONE}" not in files]
        found = [entry for name in names if (entry := self._read(name)) is not None]
        return sorted(found, key=lambda entry: entry.record.created, reverse=True)

    def verdicts(self, name: str) -> dict[str, dict[str, str]] | None:
        """Verdicts that its job has left; ``None`` before there is a report."""
        if not (self.out / name / REPORT).exists():
            return None
        return verdicts_of((self.out / name / AUDIT).read_json())

    def end(self, name: str, state: AuditState, message: str = "") -> Mapping[str, Any]:
        """Writes down how it ended, and returns that."""
        verdicts = (self.verdicts(name) or {}) if state == "succeeded" else {}
        finished = datetime.now(UTC).isoformat()
        ended = {"state": state, "finished": finished, "message": message, "verdicts": verdicts}
        (self.out / name / STATE).write_json(ended)
        return ended

    def delete(self, name: str) -> None:
        """Writes the tombstone, no more."""
        self._tombstone(name).write_json({"deleted": datetime.now(UTC).isoformat()})

    def deleted(self) -> list[str]:
        """Names with a tombstone."""
        return [name.removesuffix(TOMBSTONE) for name in self.out.names() if name.endswith(TOMBSTONE)]

    def erase(self, name: str) -> None:
        """Deletes what a deleted audit wrote, and its tombstone once that is old enough."""
        self._ended.pop(name, None)
        (self.out / name).delete()
        try:
            since = datetime.fromisoformat(self._tombstone(name).read_json()["deleted"])
        except MissingError:  # Another gateway was here first.
            return
        if (datetime.now(UTC) - since).total_seconds() > TOMBSTONE_SECONDS:
            self._tombstone(name).delete()

    def _tombstone(self, name: str) -> Location:
        return self.out / f"{name}{TOMBSTONE}"

    def _read(self, name: str) -> Entry | None:
        if name in self._ended:
            return self._ended[name]
        try:
            record = Record.model_validate((self.out / name / REQUEST).read_json())
        except MissingError:  # Deleted since it was listed, or not yet written.
            return None
        except ValidationError as error:
            logger.error("%s is left out: %d errors in it", name, error.error_count())
            return None
        try:
            ended = (self.out / name / STATE).read_json()
        except MissingError:
            return Entry(name, record, {})
        self._ended[name] = Entry(name, record, ended)
        return self._ended[name]
