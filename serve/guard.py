"""What stands before every request: keys, limits, deadlines, headers, and errors as problem documents."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from contextlib import AsyncExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.keys import Keyring
from serve.limits import Limiter
from serve.metrics import Metrics
from serve.problems import KINDS, MEDIA_TYPE, ProblemError, problem_of
from serve.settings import Settings

logger = logging.getLogger(__name__)

API = "/v1/"
"""Paths below this take a key."""

_FORM_BYTES = 1 << 20
"""What a request may hold beside its image [bytes]."""

_REQUEST_ID = "X-Request-Id"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    # Styles of its own elements, which a report shown in a frame has too; no script but the page's files.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
"""Of every answer that sets no other."""


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: What it guards.
        settings: The server's.
        keyring: The keys.
        limiter: Rates and concurrency.
        metrics: Where answers are counted.
    """

    def __init__(
        self, app: ASGIApp, *, settings: Settings, keyring: Keyring, limiter: Limiter, metrics: Metrics
    ) -> None:
        self.app, self.settings = app, settings
        self.keyring, self.limiter, self.metrics = keyring, limiter, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request in, or answers why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, private = time.perf_counter(), _path(scope).startswith(API)
        answer = _Answer(send, private=private, given=_header(scope, _REQUEST_ID.lower().encode()))
        scope.setdefault("state", {})["instance"] = answer.instance
        try:
            await self._guarded(scope, receive, answer)
        except asyncio.CancelledError:
            answer.status = answer.status or 499  # The client went away.
            raise
        except Exception as error:
            await answer.problem(problem_of(error, doing="answer"), self.settings)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(route, answer.status, time.perf_counter() - started)

    async def _guarded(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        async with AsyncExitStack() as stack:
            if _path(scope).startswith(API):
                owner = self.keyring.owner(_header(scope, b"authorization"))
                if owner is None:
                    challenge = {"WWW-Authenticate": "Bearer"}
                    raise ProblemError("unauthorised", "The key is missing or unknown.", challenge)
                scope["state"]["owner"] = owner
                await stack.enter_async_context(self.limiter.admitted(owner))
            bounded = _Bounded(receive, self.settings.uploads.most_bytes * 4 // 3 + _FORM_BYTES)
            bounded.check_length(_header(scope, b"content-length"))
            try:
                async with asyncio.timeout(self.settings.limits.deadline_seconds) as deadline:
                    scope["state"]["deadline"] = deadline
                    await self.app(scope, bounded, answer)
            except TimeoutError:
                seconds = self.settings.limits.deadline_seconds
                raise ProblemError("deadline", f"The limit is {seconds:g} s.") from None


class _Bounded:
    """A request's body, up to a size."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._seen = receive, most, 0

    def check_length(self, announced: str) -> None:
        if announced and (not announced.isdigit() or int(announced) > self._most):
            raise ProblemError("too-large", f"The request has {announced} bytes; the limit is {self._most}.")

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._most:
            raise ProblemError("too-large", f"The request has more than {self._most} bytes.")
        return message


class _Answer:
    """What goes to the client, with the headers that every answer has."""

    def __init__(self, send: Send, *, private: bool, given: str) -> None:
        self._send, self._private = send, private
        # Serve's proxy names requests, puts the name on their answers and into its logs.
        self._named = bool(_UUID.fullmatch(given))
        self.instance = given if self._named else str(uuid.uuid4())
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            there = {name.lower() for name, _ in message["headers"]}
            added = HEADERS if self._named else {**HEADERS, _REQUEST_ID: self.instance}
            if self._private:
                added = {**added, "Cache-Control": "no-store"}
            message["headers"] = [
                *message["headers"],
                *((n.encode(), v.encode()) for n, v in added.items() if n.lower().encode() not in there),
            ]
        await self._send(message)

    async def problem(self, error: ProblemError, settings: Settings) -> None:
        """Sends a problem; nothing where the answer has begun, which then ends short."""
        if self.status:
            logger.warning("request %s ended with %s after its answer began", self.instance, error.kind)
            return
        headers = {"Content-Type": MEDIA_TYPE, **error.headers}
        if KINDS[error.kind].retry:
            headers.setdefault("Retry-After", str(settings.limits.retry_after_seconds))
        listed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": error.status, "headers": listed})
        body = error.document(self.instance).model_dump_json().encode()
        await self({"type": "http.response.body", "body": body})


def _path(scope: Scope) -> str:
    """The path below the application's ``route_prefix``, as the routes see it."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")
