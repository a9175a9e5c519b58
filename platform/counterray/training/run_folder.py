"""A run's folder: what is being trained there, by whom, and whether it may go on."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from counterray.storage import Location, StorageError

LOCK_FILE = "run.lock"
HEARTBEAT_SECONDS = 10.0
SETTLE_SECONDS = 0.5
STALE_SECONDS = 60.0
"""A lock whose owner has not been heard of for this long belongs to a dead process."""

FREE_TO_CHANGE = ("resources", "checkpoint", "log_every_steps", "mlflow", "inputs")
"""Settings that a resumed run may change; all others decide what is computed."""


class RunError(RuntimeError):
    """A run's folder cannot be used as asked; the message says why and what to do."""


class RunLock:
    """Keeps two runs out of one folder.

    The lock is an object with the owner's host, process and a heartbeat. It is taken over when the owner
    is a dead process of this host, or has been silent for `STALE_SECONDS`.

    Args:
        out: The run's folder.
        work: What the run is called in messages.

    Raises:
        RunError: On entering, if another run is at work in the folder.
    """

    def __init__(self, out: Location, *, work: str = "training") -> None:
        self.work = work
        self.place = out / LOCK_FILE
        self.out = out
        self.token = uuid.uuid4().hex
        self.done = threading.Event()
        self.beating = threading.Thread(target=self._beat, daemon=True, name="run-lock")

    def __enter__(self) -> RunLock:
        if self.place.exists():
            owner = self.place.read_json()
            if not _is_dead(owner):
                raise RunError(
                    f"Another {self.work} is at work in {self.out.uri} (process {owner['process']} on "
                    f"{owner['host']}, heard of {time.time() - owner['heartbeat']:.0f} s ago). Choose "
                    f"another --out, or wait; a dead {self.work}'s lock expires after {STALE_SECONDS:.0f} s."
                )
        self._write()
        time.sleep(SETTLE_SECONDS)  # two that came at once: the last writer wins, the other one sees it here
        if not self._is_ours():
            raise RunError(
                f"Another {self.work} took {self.out.uri} at the same moment. Choose another --out."
            )
        self.beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.done.set()
        self.beating.join(timeout=5)
        try:
            if self._is_ours():
                self.place.delete()
        except StorageError:
            if error is None:
                raise

    def _is_ours(self) -> bool:
        return bool(self.place.read_json()["token"] == self.token)

    def _write(self) -> None:
        self.place.write_json(
            {
                "token": self.token,
                "host": socket.gethostname(),
                "process": os.getpid(),
                "heartbeat": time.time(),
            }
        )

    def _beat(self) -> None:
        while not self.done.wait(HEARTBEAT_SECONDS):
            try:
                if self._is_ours():
                    self._write()
            except StorageError:
                continue  # storage that is away for a while must not end a training


def _is_dead(owner: dict[str, Any]) -> bool:
    if time.time() - owner["heartbeat"] > STALE_SECONDS:
        return True
    same_host = owner["host"] == socket.gethostname()
    return same_host and not Path(f"/proc/{owner['process']}").exists()


def begin(out: Location, description: dict[str, Any], *, resume: bool) -> None:
    """Checks that a run may start or go on in ``out``, and writes ``run.json``.

    Args:
        out: The run's folder.
        description: ``config``, ``data_fingerprint``, ``code_version``, ``parents``.
        resume: Whether an unfinished run may go on.

    Raises:
        RunError: If the folder holds a run and ``resume`` is false, or holds another run.
    """
    place = out / "run.json"
    if not place.exists():
        place.write_json(description)
        return
    if not resume:
        raise RunError(
            f"{out.uri} already holds a training. Add --resume to continue it, or choose another --out."
        )
    before = place.read_json()
    differing = [
        key
        for key in sorted({*before["config"], *description["config"]} - set(FREE_TO_CHANGE))
        if before["config"].get(key) != description["config"].get(key)
    ]
    differing += [key for key in ("data_fingerprint", "parents") if before[key] != description[key]]
    if differing:
        raise RunError(
            f"{out.uri} holds another training: it differs in {', '.join(differing)}. Resume it with its own "
            f"settings (run.json), or choose another --out. Free to change: {', '.join(FREE_TO_CHANGE)}."
        )
