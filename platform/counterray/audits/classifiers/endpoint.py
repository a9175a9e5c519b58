"""A classifier behind an HTTP endpoint. Images leave this machine only to hosts that the audit allows.

One request is ``POST {"images": [<base64 of a PNG of 8 bits>, ...]}``; the answer is ``{"scores": [[p, ...],
...]}``, a row for each image and a probability (or null) for each finding. Nothing else of a study is sent.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence
from typing import IO, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from pydantic import Field
from torch import Tensor

from counterray.audits.classifiers.contract import (
    AdapterConfig,
    ClassifierError,
    as_scores,
    fingerprint_of,
    in_pieces,
    require_findings,
)
from counterray.audits.classifiers.preprocessing import resized
from counterray.evaluation.intervals import Floats

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""

LONGEST_WAIT_SECONDS = 120.0
"""Longest wait that an endpoint may ask for [s]."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class EndpointConfig(AdapterConfig):
    """An HTTP endpoint."""

    kind: Literal["http"] = "http"
    """The kind."""
    url: str
    """Where requests go, ``https://…``; plain ``http://`` without a key, or to this machine."""
    findings: tuple[str, ...]
    """What its scores are, in order."""
    version: str = ""
    """Which model answers there; part of what cached answers are found by, so change it with the model."""
    size: int | None = Field(default=None, ge=1)
    """Edge that images are resized to before they are sent [px]; as they are by default."""
    key_variable: str = ""
    """Name of the environment variable with the key, sent as ``Authorization: Bearer``; none by default."""
    timeout_seconds: float = Field(default=60, gt=0)
    """Longest time to wait for an answer [s]."""
    retries: int = Field(default=5, ge=0, le=20)
    """Further attempts after 408, 409, 425, 429, 5xx, a timeout or a lost connection; waits 0.5 s, doubling
    up to 8 s, or as long as ``Retry-After`` says (up to 2 minutes)."""
    requests_per_second: float = Field(default=10, gt=0)
    """Requests at most [1/s]; all go out from one worker, one after another."""
    batch_size: int = Field(default=16, ge=1)
    """Images of a request at most."""


class EndpointError(ClassifierError):
    """An endpoint does not answer, or not as agreed; what it answered before stays."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead images to a host that was not allowed."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """None is followed."""


class EndpointClassifier:
    """Implements `ImageClassifier` by an HTTP endpoint.

    Args:
        config: Which one.
        allowed_hosts: Hosts that images may be sent to, with their port where the URL has one.

    Raises:
        ClassifierError: If its host is not allowed, a key would travel unencrypted, or the key is not set.
    """

    def __init__(self, config: EndpointConfig, *, allowed_hosts: Collection[str]) -> None:
        parts = urlsplit(config.url)
        host = parts.netloc.rpartition("@")[2]
        self.config, self.name = config, config.name or f"{host}{parts.path}"
        if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
            raise ClassifierError(
                f"Classifier {self.name!r}: its url must be https://host/path (or http://), without user and "
                "password; a key comes from the variable that key_variable names."
            )
        if host not in allowed_hosts:
            raise ClassifierError(
                f"Classifier {self.name!r} would send images to {host}, which is not allowed. If they may "
                f"leave this machine for it, set allowed_hosts=[{host}]. Allowed now: "
                f"{', '.join(sorted(allowed_hosts)) or 'none'}."
            )
        if config.key_variable and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ClassifierError(
                f"Classifier {self.name!r}: the key in {config.key_variable} would travel unencrypted to "
                f"{host}. Use https."
            )
        self.findings = require_findings(self.name, config.findings)
        self.fingerprint = fingerprint_of(config.model_copy(update=_HARMLESS))
        self._headers = {"Content-Type": "application/json", **_authorization(self.name, config.key_variable)}
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._next = 0.0

    def scores(self, image: Tensor, *, keys: Sequence[str]) -> Floats:
        """Probabilities ``[N, F]``; see `ImageClassifier`.

        Raises:
            EndpointError: If it does not answer after all retries, refuses, or its answer is not as agreed.
        """
        pieces = in_pieces(resized(image, self.config.size), self.config.batch_size)
        return np.concatenate([self._ask(piece) for piece in pieces])

    def _ask(self, piece: Tensor) -> Floats:
        body = json.dumps({"images": [base64.b64encode(png(one)).decode() for one in piece]}).encode()
        answer = self._post(body)
        try:
            values = json.loads(answer)["scores"]
            numbers = [[np.nan if value is None else float(value) for value in row] for row in values]
        except (ValueError, TypeError, KeyError):  # not quoted: it may repeat the request
            raise EndpointError(
                f"Classifier {self.name!r} did not answer with JSON {{'scores': [[p, ...], ...]}}. Check its "
                "url, and the version of what serves it."
            ) from None
        return as_scores(self.name, numbers, images=len(piece), findings=self.findings)

    def _post(self, body: bytes) -> bytes:
        cause = ""
        for attempt in range(self.config.retries + 1):
            self._wait_for_turn()
            request = urllib.request.Request(self.config.url, data=body, headers=self._headers)
            wait = min(8.0, 0.5 * 2**attempt)
            try:
                with self._opener.open(request, timeout=self.config.timeout_seconds) as response:
                    return bytes(response.read())
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in AGAIN:
                    raise EndpointError(
                        f"Classifier {self.name!r} answered with status {error.code}. {_remedy(error.code)}"
                    ) from None
                cause, wait = f"status {error.code}", _retry_after(error.headers.get("Retry-After"), wait)
            except (OSError, http.client.HTTPException) as error:  # lost, refused, timed out or cut off
                reason = getattr(error, "reason", error)
                cause = type(reason).__name__ if isinstance(reason, Exception) else type(error).__name__
            if attempt < self.config.retries:
                time.sleep(wait)
        raise EndpointError(
            f"Classifier {self.name!r} did not answer in {self.config.retries + 1} attempts; the last one "
            f"ended with {cause}. Start it again and run the same audit: what was answered stays."
        )

    def _wait_for_turn(self) -> None:
        now = time.monotonic()
        time.sleep(max(0.0, self._next - now))
        self._next = max(now, self._next) + 1 / self.config.requests_per_second


_HARMLESS = {"key_variable": "", "timeout_seconds": 1.0, "retries": 0, "requests_per_second": 1.0}
"""Settings, with one value for all, that change no answer."""


def png(image: Tensor) -> bytes:
    """A PNG file of 8 bits of an image ``[1, H, W]`` in [-1, 1]; outside is clipped."""
    grey = ((image[0].double().clamp(-1, 1) + 1) * 127.5).round().cpu().numpy().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _authorization(name: str, variable: str) -> dict[str, str]:
    if not variable:
        return {}
    if not os.environ.get(variable):
        raise ClassifierError(f"Classifier {name!r} needs its key in the environment variable {variable}.")
    return {"Authorization": f"Bearer {os.environ[variable]}"}


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "It refuses the key: check the variable that key_variable names."
    if 300 <= status < 400:
        return "Redirects are not followed, as they could lead to another host: give the final address."
    return "It refuses the request: check its url, size and findings."


def _retry_after(text: str | None, wait: float) -> float:
    try:
        return min(LONGEST_WAIT_SECONDS, max(0.0, float(text or "")))
    except ValueError:
        return wait
