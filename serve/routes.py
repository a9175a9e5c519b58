"""The HTTP routes: the work that each asks for, and the answers."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from counterray.models.generator import Edit
from serve.auditor import Auditor
from serve.backend import Backend
from serve.bodies import read_body, read_counterfactual
from serve.decoding import to_model_size
from serve.keys import Keyring
from serve.limits import Limiter
from serve.metrics import Metrics
from serve.pictures import given_picture
from serve.problems import KINDS, ProblemError
from serve.samples import Samples
from serve.schemas import (
    Audit,
    AuditList,
    AuditRequest,
    CounterfactualAnswer,
    Identifier,
    Intervention,
    ModelCard,
    ModelList,
    Sample,
    TextRequest,
)
from serve.settings import Settings
from serve.uploads import Decoders
from serve.work import Made, Preview, Work

EVENTS = "text/event-stream"

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
)
"""Of an audit's report: a page of numbers and pictures, without scripts."""

Id = Annotated[Identifier, Path(description="32 hexadecimal digits.")]


@dataclass(frozen=True)
class Services:
    """What the routes use.

    Attributes:
        settings: The server's.
        cards: Name of each model to its card.
        keyring: The keys.
        backend: The models.
        samples: Images for trying.
        auditor: The audits; ``None`` where there are none.
        gateway: Name of this process among gateways.
    """

    settings: Settings
    cards: Mapping[str, ModelCard]
    keyring: Keyring
    backend: Backend
    samples: Samples
    auditor: Auditor | None
    gateway: str = "gateway"


@dataclass(frozen=True)
class Routes:
    """The routes.

    Attributes:
        services: What they use.
        metrics: What they count.
        limiter: Who is inside.
        decoders: Processes that read pictures.
    """

    services: Services
    metrics: Metrics
    limiter: Limiter
    decoders: Decoders

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter()
        answer: dict[str, Any] = {"response_model": CounterfactualAnswer}
        router.post("/v1/counterfactuals", **answer)(self.counterfactuals)
        router.post("/v1/counterfactuals/{noise_id}", **answer)(self.again)
        router.post("/v1/images", **answer)(self.images)
        router.get("/v1/models")(self.models)
        router.get("/v1/samples")(self.sample_list)
        router.get("/v1/samples/{name}.png", response_class=Response)(self.sample)
        router.post("/v1/audits", status_code=202)(self.new_audit)
        router.get("/v1/audits")(self.audits)
        router.get("/v1/audits/{audit_id}")(self.audit)
        router.get("/v1/audits/{audit_id}/report.html", response_class=Response)(self.report)
        router.delete("/v1/audits/{audit_id}", status_code=204)(self.delete_audit)
        router.get("/healthz")(self.healthz)
        router.get("/readyz")(self.readyz)
        router.get("/metrics", response_class=Response)(self.metrics_page)
        router.get("/problems/{kind}")(self.problem)
        return router

    async def counterfactuals(self, request: Request) -> Response:
        """Counterfactuals of an image: abducts what is kept of it, intervenes, predicts."""
        asked, file = await read_counterfactual(request)
        card, started = self._card(asked.model), time.perf_counter()
        image = await self.decoders.decode(file, card.image_size)
        self.metrics.stage(asked.model, "decode", time.perf_counter() - started)
        observed = None if asked.observed == "infer" else asked.observed
        work = Work(edit=_edit(asked), image=image, observed=observed, **_wanted(asked))
        return await self._answered(request, asked.model, work, keep=True)

    async def again(self, noise_id: Id, request: Request) -> Response:
        """Another intervention on noise that was abducted before: one prediction."""
        asked = await read_body(request, Intervention)
        found = await self.services.backend.find(noise_id, owner=_owner(request))
        if found is None or found.model not in self.services.cards:
            raise ProblemError("unknown-noise", f"noise_id = {noise_id}.")
        work = Work(edit=_edit(asked), kept=found.kept, **_wanted(asked))
        return await self._answered(request, found.model, work, noise_id=noise_id)

    async def images(self, request: Request) -> Response:
        """Images from words alone, on the anatomy of a sample that the first seed chooses."""
        asked = await read_body(request, TextRequest)
        card = self._card(asked.model)
        anatomy = self.services.samples.anatomy(asked.seeds[0])
        image = to_model_size(anatomy.astype(np.float32) / np.float32(255), card.image_size)
        edit = Edit(prompt=asked.prompt, severity=asked.severity, anatomy_only=True)
        work = Work(edit=edit, image=image, observed={}, **_wanted(asked))
        return await self._answered(request, asked.model, work)

    async def models(self) -> ModelList:
        """The models, and what each can set."""
        loaded = await self.services.backend.loaded()
        cards = self.services.cards.values()
        return ModelList(
            models=tuple(card.model_copy(update={"loaded": card.name in loaded}) for card in cards)
        )

    async def sample_list(self) -> list[Sample]:
        """Images for trying."""
        return self.services.samples.listed()

    async def sample(self, name: str) -> Response:
        """A sample as a PNG file."""
        png = base64.b64decode(given_picture(self.services.samples.find(name)))
        return Response(png, media_type="image/png")

    async def new_audit(self, request: Request) -> Audit:
        """Starts an audit."""
        asked = await read_body(request, AuditRequest)
        return await asyncio.to_thread(self._auditor().submit, asked)

    async def audits(self) -> AuditList:
        """All audits."""
        return AuditList(audits=tuple(await asyncio.to_thread(self._auditor().listed)))

    async def audit(self, audit_id: Id) -> Audit:
        """An audit's state."""
        return await asyncio.to_thread(self._auditor().find, audit_id)

    async def report(self, audit_id: Id) -> Response:
        """The report of an audit that has succeeded."""
        page = await asyncio.to_thread(self._auditor().report, audit_id)
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    async def delete_audit(self, audit_id: Id) -> None:
        """Stops an audit that runs, and deletes what it wrote."""
        await asyncio.to_thread(self._auditor().delete, audit_id)

    async def healthz(self) -> dict[str, str]:
        """Whether this gateway lives."""
        return {"status": "ok"}

    async def readyz(self) -> dict[str, str]:
        """Whether a request would be answered."""
        if not await self.services.backend.ready():
            raise ProblemError("unavailable", "The models cannot be reached.")
        return {"status": "ready"}

    async def metrics_page(self) -> Response:
        """Numbers for Prometheus."""
        noise = await self.services.backend.counts()
        page = self.metrics.page(inside=self.limiter.inside.total(), noise=noise)
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def problem(self, kind: str) -> dict[str, Any]:
        """What a kind of problem means."""
        if kind not in KINDS:
            raise ProblemError("not-found", f"Kinds of problems: {', '.join(KINDS)}.")
        found = KINDS[kind]
        return {"title": found.title, "status": found.status, "remedy": found.remedy, "retry": found.retry}

    async def _answered(
        self, request: Request, model: str, work: Work, *, keep: bool = False, noise_id: str | None = None
    ) -> Response:
        owner = _owner(request)
        if EVENTS in request.headers.get("accept", ""):
            events = self._events(owner, model, work, request.state.instance, keep=keep, noise_id=noise_id)
            return StreamingResponse(events, media_type=EVENTS, headers={"X-Accel-Buffering": "no"})
        started = time.perf_counter()
        made = await self.services.backend.make(model, work)
        self.metrics.stage(model, "call", time.perf_counter() - started)
        if isinstance(made, ProblemError):
            raise made
        self.metrics.made(model, made)
        answer = await self._packed(owner, model, made, keep=keep, noise_id=noise_id)
        return Response(answer.model_dump_json(), media_type="application/json")

    async def _events(
        self, owner: str, model: str, work: Work, instance: str, *, keep: bool, noise_id: str | None
    ) -> AsyncIterator[str]:
        """``preview`` while it is made, then ``answer`` or ``problem``."""
        async for item in self.services.backend.watch(model, work):
            if isinstance(item, Preview):
                yield _event("preview", json.dumps(vars(item)))
            elif isinstance(item, ProblemError):
                yield _event("problem", item.document(instance).model_dump_json())
            else:
                self.metrics.made(model, item)
                answer = await self._packed(owner, model, item, keep=keep, noise_id=noise_id)
                yield _event("answer", answer.model_dump_json())

    async def _packed(
        self, owner: str, model: str, made: Made, *, keep: bool, noise_id: str | None
    ) -> CounterfactualAnswer:
        expires = None
        if keep:
            noise_id, expires = await self.services.backend.keep(made.kept, owner=owner, model=model)
        return CounterfactualAnswer(
            noise_id=noise_id,
            expires=expires,
            input=made.input,
            inferred=dict(made.kept.inferred),
            images=made.images,
            provenance=made.provenance,
        )

    def _card(self, model: str) -> ModelCard:
        if model not in self.services.cards:
            raise ProblemError("unknown-model", f"model = {model!r}.")
        return self.services.cards[model]

    def _auditor(self) -> Auditor:
        if self.services.auditor is None:
            raise ProblemError("audits-off", "audits.roots is empty.")
        return self.services.auditor


def _edit(asked: Intervention) -> Edit:
    return Edit(do=asked.do, prompt=asked.prompt, severity=asked.severity)


def _wanted(asked: Intervention) -> dict[str, Any]:
    return asked.model_dump(include={"seeds", "steps", "guidance", "dicom"})


def _owner(request: Request) -> str:
    return str(request.state.owner)


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
