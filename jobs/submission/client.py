"""A connection to the jobs of a cluster, through the dashboard of its head."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.submission.errors import AwayError, SubmissionError

CONNECT_SECONDS = 10.0
"""How long a head may take to answer the first call."""

TOKEN_PLACES = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"


def connect(address: str | None) -> Any:
    """A ``JobSubmissionClient`` of the cluster whose dashboard is at ``address``.

    Where Ray has a token (`TOKEN_PLACES`) and ``RAY_AUTH_MODE`` is not set, the token is sent.

    Raises:
        SubmissionError: If the address is none of a dashboard, nobody answers there, or the token is refused.
    """
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    url = _checked(given)
    _require_answer(url)
    _use_the_token()
    # Ray would follow these in place of the address that it is given.
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    from ray.job_submission import JobSubmissionClient

    for module in ("job.sdk", "dashboard_sdk"):  # they tell of every upload and every connection that ends
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    with translated(url):
        return JobSubmissionClient(url)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turns what Ray and HTTP raise into a `SubmissionError`."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise SubmissionError(_refused(url, str(error))) from None
    except (ConnectionError, requests.RequestException) as error:
        raise AwayError(f"The head at {url} does not answer as a Ray head does ({_brief(error)}).") from None
    except (RuntimeError, ValueError) as error:
        raise SubmissionError(f"The head at {url} says: {_brief(error)}") from None


def _checked(address: str | None) -> str:
    if not address:
        raise SubmissionError(
            "No cluster is named: give --address http://<head>:8265, or set RAY_API_SERVER_ADDRESS to it."
        )
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SubmissionError(
            f"--address {address} is no URL of a dashboard. Jobs are sent to the head's dashboard, such as "
            "http://head:8265; ray:// addresses are for drivers that stay here."
        )
    return address.rstrip("/")


def _require_answer(url: str) -> None:
    """Ray's own client waits without a limit for a host that is silent."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise SubmissionError(
            f"Nobody answers at {url} ({error}). Check the address and the port (8265 by default), and that "
            "the head runs; a head inside Kubernetes is reached through kubectl port-forward."
        ) from None


def _use_the_token() -> None:
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _refused(url: str, said: str) -> str:
    if "Missing" in said or os.environ.get("RAY_AUTH_MODE", "disabled").lower() != "token":
        return (
            f"The head at {url} wants a token, and none was sent. Put it into {TOKEN_PLACES}, and leave "
            "RAY_AUTH_MODE unset or set it to token."
        )
    return (
        f"The head at {url} refuses the token. It was read from {TOKEN_PLACES}, in this order; who runs the "
        "cluster knows the right one."
    )


def _brief(error: Exception) -> str:
    """The first line of a message, without Ray's traceback from the head."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
