"""A stand-in for the gateway, so that the page is tested by itself: a test double.

It keeps the contract of `serve.schemas`, with answers that a test can predict, delay and spoil. What it
computes is the phantom's truth; it holds no model.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from counterray.data.phantom.scm import FINDING_NAMES, VOCABULARY
from counterray.data.pixels import Rejected
from serve.guard import HEADERS
from serve.schemas import (
    Audit,
    AuditList,
    AuditRequest,
    CounterfactualAnswer,
    CounterfactualRequest,
    FindingLevels,
    Intervention,
    ModelCard,
    ModelList,
    Problem,
    Provenance,
    Sample,
)
from tests.apps.phantom_answers import AGES, SIZE, Abducted, Phantoms, png
from tests.conftest import ROOT

KEY = "test-key-5d1f"
POLICY = HEADERS["Content-Security-Policy"]
CHECKSUM = "9b1c4fd2e07a" + 52 * "0"

FINDINGS = tuple(
    FindingLevels(name=f"finding.{name}", levels=("absent", "present"))
    for name in (*FINDING_NAMES, "no_finding")
)
ATTRIBUTES = (
    FindingLevels(name="sex", levels=VOCABULARY["sex"]),
    FindingLevels(name="age", levels=AGES),
    FindingLevels(name="scanner", levels=VOCABULARY["scanner"]),
)
CARD = {
    "checksum": CHECKSUM,
    "image_size": SIZE,
    "judges": ("classifier 3f9a2c71", "demographic b81d02e4"),
    "loaded": True,
    "prompts": False,
    "seeded": False,
    "severity": True,
    "steps": None,
    "guidance": None,
}
MODELS = (
    ModelCard(name="phantom-exact", stage="exact", variables=(*FINDINGS, *ATTRIBUTES), **CARD),
    ModelCard(
        name="phantom-words",
        stage="pathology_ldm",
        variables=FINDINGS,
        **CARD | {"prompts": True, "seeded": True, "steps": 50, "guidance": 3.0, "loaded": False},
    ),
)


@dataclass(frozen=True)
class Fault:
    """A problem in place of an answer."""

    status: int
    title: str
    detail: str
    remedy: str
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> JSONResponse:
        said = Problem(
            type="/problems/test",
            title=self.title,
            status=self.status,
            detail=self.detail,
            remedy=self.remedy,
            instance="req-7c0d51",
        )
        return JSONResponse(
            said.model_dump(), self.status, self.headers, media_type="application/problem+json"
        )


class Refused(Exception):
    """A problem in place of an answer."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.title)
        self.fault = fault


WRONG_KEY = Fault(401, "Wrong key", "The server does not know this key.", "Use the key that it prints.")
UNKNOWN = Fault(404, "Unknown", "There is none of this name.", "List what there is, and ask for one of it.")


@dataclass
class PageServer:
    """The server's address, what it was asked, and how it fails.

    Attributes:
        url: Where the page is.
        asked: Path below ``/v1`` and body of every request for counterfactuals, in order.
        delays: Seconds that the next counterfactuals wait; then none does.
        faults: In place of the next counterfactuals.
        aborted: Requests for counterfactuals whose client went away.
        audits: By identifier.
        report: Makes an audit's report.
    """

    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    aborted: int = 0
    audits: dict[str, Audit] = field(default_factory=dict)
    report: Callable[[], str] = lambda: "<p>no report</p>"
    phantoms: Phantoms = field(default_factory=Phantoms)
    noise: dict[str, tuple[str, Abducted]] = field(default_factory=dict)

    def reset(self) -> None:
        """As if nothing had been asked."""
        for kept in (self.asked, self.delays, self.faults, self.audits, self.noise):
            kept.clear()
        self.aborted = 0

    def finish(self, audit_id: str, **changes: Any) -> None:
        """Ends an audit."""
        end = {"state": "succeeded", "finished": datetime.now(UTC), **changes}
        self.audits[audit_id] = self.audits[audit_id].model_copy(update=end)

    async def samples(self) -> list[Sample]:
        return [
            Sample(name=f"Phantom {number}", image=png(one.grey))
            for number, one in enumerate(self.phantoms.patients, start=1)
        ]

    async def make(self, request: Request, asked: CounterfactualRequest) -> CounterfactualAnswer:
        await self._troubles(request, "counterfactuals", asked)
        if asked.model not in {card.name for card in MODELS}:
            raise Refused(UNKNOWN)
        try:
            patient = self.phantoms.abduct(base64.b64decode(asked.image))
        except Rejected as error:
            raise Refused(
                Fault(422, "The image cannot be read", str(error), "Send a PNG, JPEG or DICOM.")
            ) from error
        if patient is None:
            raise Refused(Fault(422, "Unknown image", "It is no phantom's.", "Send a sample of this server."))
        noise_id = f"{len(self.noise) + 1:032x}"
        self.noise[noise_id] = (asked.model, patient)
        inferred = patient.inferred if asked.observed == "infer" else {}
        return self._answer(noise_id, asked, inferred)

    async def remake(self, request: Request, noise_id: str, asked: Intervention) -> CounterfactualAnswer:
        await self._troubles(request, f"counterfactuals/{noise_id}", asked)
        if noise_id not in self.noise:
            raise Refused(UNKNOWN)
        return self._answer(noise_id, asked, {})

    async def _troubles(self, request: Request, path: str, asked: Intervention) -> None:
        self.asked.append((path, asked.model_dump(exclude_defaults=True)))
        wait = self.delays.pop(0) if self.delays else 0
        fault = self.faults.pop(0) if self.faults else None
        until = time.monotonic() + wait
        while time.monotonic() < until:
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                self.aborted += 1
                break
        if fault:
            raise Refused(fault)

    def _answer(self, noise_id: str, asked: Intervention, inferred: dict[str, Any]) -> CounterfactualAnswer:
        model, patient = self.noise[noise_id]
        return CounterfactualAnswer(
            noise_id=noise_id,
            expires=datetime.now(UTC) + timedelta(minutes=10),
            input=png(patient.grey),
            inferred=inferred,
            images=self.phantoms.made(patient, asked),
            provenance=Provenance(
                model=model,
                stage=next(card.stage for card in MODELS if card.name == model),
                checksum=CHECKSUM,
                code_version="0.1.0",
                device="cpu",
            ),
        )

    async def start_audit(self, asked: AuditRequest) -> Audit:
        audit = Audit(
            id=f"{len(self.audits) + 1:032x}",
            state="running",
            created=datetime.now(UTC),
            finished=None,
            request=asked,
            message="",
            verdicts={},
        )
        self.audits[audit.id] = audit
        return audit

    async def list_audits(self) -> AuditList:
        return AuditList(audits=tuple(reversed(self.audits.values())))

    async def read_audit(self, audit_id: str) -> Audit:
        if audit_id not in self.audits:
            raise Refused(UNKNOWN)
        return self.audits[audit_id]

    async def read_report(self, audit_id: str) -> HTMLResponse:
        await self.read_audit(audit_id)
        return HTMLResponse(self.report())

    async def delete_audit(self, audit_id: str) -> Response:
        await self.read_audit(audit_id)
        if self.audits[audit_id].state in ("queued", "running"):
            self.finish(audit_id, state="stopped")
        else:
            del self.audits[audit_id]
        return Response(status_code=204)


async def _models() -> ModelList:
    return ModelList(models=MODELS)


async def _check_key(request: Request) -> None:
    if request.headers.get("authorization") != f"Bearer {KEY}":
        raise Refused(WRONG_KEY)


def with_policy(app: FastAPI) -> Callable[..., Any]:
    """The app, with the headers that a strict gateway sends."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await app(scope, receive, sending)

    return guarded


def application(state: PageServer) -> FastAPI:
    """The contract's routes, then the page itself."""
    app = FastAPI()
    api = APIRouter(prefix="/v1", dependencies=[Depends(_check_key)])

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return error.fault.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Fault(
            422, "Invalid request", f"{first['loc'][-1]}: {first['msg']}", "Compare with /docs."
        ).response()

    api.get("/models")(_models)
    api.get("/samples")(state.samples)
    api.post("/counterfactuals")(state.make)
    api.post("/counterfactuals/{noise_id}")(state.remake)
    api.get("/audits")(state.list_audits)
    api.post("/audits", status_code=201)(state.start_audit)
    api.get("/audits/{audit_id}")(state.read_audit)
    api.get("/audits/{audit_id}/report.html", response_class=HTMLResponse)(state.read_report)
    api.delete("/audits/{audit_id}", status_code=204)(state.delete_audit)
    app.include_router(api)
    app.mount("/", StaticFiles(directory=ROOT / "serve" / "page", html=True))
    return app


@contextmanager
def running(application: ASGIApp) -> Iterator[str]:
    """Runs an application in a thread of this process, and yields its URL."""
    config = uvicorn.Config(
        application, port=0, log_level="error", ws="none", lifespan="off", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@contextmanager
def serving() -> Iterator[PageServer]:
    """Runs the stand-in."""
    state = PageServer()
    with running(with_policy(application(state))) as state.url:
        yield state
