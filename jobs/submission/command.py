"""The command that a cluster is asked to run, checked before it is sent."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.submission.errors import SubmissionError
from jobs.submission.package import SENT_FOLDERS, is_sent

HERE_ONLY = ("submit", "cluster", "serve", "readings")
"""Jobs that are no work for a cluster."""

_PLACES = (
    *("out", "data", "root", "config", "cache", "model", "generator", "judge", "near_judge", "classifier"),
    *("gsvae", "text"),
)
"""Options of jobs that name a file or a folder."""


@dataclass(frozen=True)
class JobCommand:
    """A job's command line.

    Attributes:
        words: The job's name and its arguments.
        out: Where its results go.
    """

    words: tuple[str, ...]
    out: str

    @property
    def job(self) -> str:
        """The job's name."""
        return self.words[0]

    @property
    def line(self) -> str:
        """What the cluster's shell is given."""
        return shlex.join(["python", "-m", "jobs", *self.words])


def read_command(words: Sequence[str], group: Any, parent: Any) -> JobCommand:
    """Parses a job's words as the job itself would, so that what it would refuse is refused here.

    A job that must be told to continue what its folder holds is told so: the same line sent again goes on.

    Args:
        words: The job's name and its arguments.
        group: The command group of ``python -m jobs``.
        parent: Its context.

    Raises:
        SubmissionError: If the job is none that a cluster runs, or a place in it is on this machine only.
        typer.Exit: If help was asked for.
    """
    job, arguments = words[0], list(words[1:])
    known = sorted(set(group.commands) - set(HERE_ONLY))
    if job not in known:
        raise SubmissionError(f"{job!r} is no job for a cluster. Available: {', '.join(known)}.")
    values: Mapping[str, Any] = group.commands[job].make_context(job, list(arguments), parent=parent).params
    if values.get("address"):
        raise SubmissionError(
            f"--address {values['address']} stands in the job's own arguments, but it runs on the "
            "cluster that it is sent to. Leave it out there."
        )
    out = values.get("out")
    if not out:
        raise SubmissionError(
            f"{job} without --out keeps its results in the job's own folder, which the cluster deletes. Name "
            "an s3:// URI, or a folder that all nodes share."
        )
    for name in _PLACES:
        value = values.get(name)
        for text in value if isinstance(value, list | tuple) else [value]:
            _require_reachable(f"--{name.replace('_', '-')}", text)
    for override in values.get("overrides") or ():
        setting, _, text = override.partition("=")
        is_place = text.startswith(".") or ("/" in text and Path(text).exists())
        _require_reachable(f"--set {setting}", text if is_place else None)
    if values.get("resume") is False and values.get("go_on") is False:
        arguments.append("--continue")
    return JobCommand((job, *arguments), str(out).rstrip("/"))


def _require_reachable(option: str, value: object) -> None:
    """Refuses a relative path, unless it is of a file that is sent along."""
    text = str(value) if value is not None else ""
    looks_like_a_path = "/" in text or text.startswith(".") or option == "--out"
    if not looks_like_a_path or text.startswith("/") or "://" in text or is_sent(text):
        return
    raise SubmissionError(
        f"{option} = {text} is a place on this machine. Nodes reach s3:// URIs, folders that all of them "
        "share (by their absolute path), and the source files of this checkout's folders "
        f"{', '.join(SENT_FOLDERS)}."
    )
