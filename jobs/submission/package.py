"""What of the checkout goes to a cluster: code and configurations, by name; everything else stays here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jobs.submission.errors import SubmissionError

CHECKOUT = Path(__file__).parents[2]

SENT_FOLDERS = ("jobs", "serve", "tune", "platform")
SENT_SUFFIXES = (".py", ".yaml", ".json", ".html", ".jinja", ".js", ".css", ".svg", ".typed")

EXCLUDES = (
    *("/?*", "!."),  # all, but not the checkout itself
    *(f"!/{folder}{below}" for folder in SENT_FOLDERS for below in ("", "/**")),
    "?*.?*",
    *(f"!*{suffix}" for suffix in SENT_SUFFIXES),
    *(".?*", "__pycache__", "*.egg-info", "*secret*", "*credential*", "*password*", "id_rsa*", "id_ed25519*"),
)
"""Patterns of ``.gitignore``, of which the last that fits decides: no folder but `SENT_FOLDERS`, of these no
file but source, and nothing whose name is that of a secret. Data and bundles stay here by not being named.
"""

LOCK = "requirements.lock"

Packages = Literal["image", "lock"]

_SECRET = re.compile(r"(?i)(secret|token|password|passwd|credential|(^|_)key($|_))")


def runtime_environment(
    packages: Packages, variables: Sequence[str] = (), *, checkout: Path = CHECKOUT
) -> dict[str, Any]:
    """What Ray sets up on every node for a job.

    Args:
        packages: ``image`` for those that the nodes' image carries; ``lock`` to install ``requirements.lock``
            on every node by uv, which takes minutes and needs a package index there.
        variables: Environment variables of the job, as ``NAME=VALUE``.
        checkout: What is sent of.

    Raises:
        SubmissionError: If a variable is not of that form, or its name is that of a secret.
    """
    environment: dict[str, Any] = {
        "working_dir": str(checkout),
        "excludes": list(EXCLUDES),
        # Relative to the working directory, where the driver and every worker start.
        "env_vars": {"PYTHONPATH": "platform", **dict(_assignment(text) for text in variables)},
    }
    if packages == "lock":
        environment["uv"] = str(checkout / LOCK)
    return environment


def is_sent(value: str, *, checkout: Path = CHECKOUT) -> bool:
    """Whether a relative path names a file that goes along."""
    path = Path(value)
    inside = bool(path.parts) and path.parts[0] in SENT_FOLDERS and ".." not in path.parts
    return inside and path.suffix in SENT_SUFFIXES and (checkout / path).is_file()


def _assignment(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise SubmissionError(f"--env {name} is not of the form NAME=VALUE.")
    if _SECRET.search(name):
        raise SubmissionError(
            f"--env {name}: a job's variables are shown to everyone who reaches the dashboard. Give a secret "
            "to the nodes, as infra/README.md says, or use their role."
        )
    return name, value
