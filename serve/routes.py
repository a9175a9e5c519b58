"""The HTTP routes: the work that each asks for, and the answers."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Request, Response
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

_TELLING_SECONDS = 5.0
"""How long after the deadline the end of a stream may take to reach its client."""

_Items = AsyncIterator[Preview | Made | ProblemError]
_Noise = tuple[str | None, datetime | None]
"""Name of what is kept, and when it is forgotten."""

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
        answer: dict[str, Any] = {"response_model": CounterfactualAnswer}
        router, api = APIRouter(), APIRouter(prefix="/v1", dependencies=[Depends(_owner)])
        api.post("/counterfactuals", **answer)(self.counterfactuals)
        api.post("/counterfactuals/{noise_id}", **answer)(self.again)
        api.post("/images", **answer)(self.images)
        api.get("/models")(self.models)
        api.get("/samples")(self.sample_list)
        api.get("/samples/{name}.png", response_class=Response)(self.sample)
        api.post("/audits", status_code=202)(self.new_audit)
        api.get("/audits")(self.audits)
        api.get("/audits/{audit_id}")(self.audit)
        api.get("/audits/{audit_id}/report.html", response_class=Response)(self.report)
        api.delete("/audits/{audit_id}", status_code=204)(self.delete_audit)
        router.include_router(api)
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
        self.metrics.noise_used.labels(self.services.gateway, found.model).inc()
        return await self._answered(request, found.model, work, noise=(noise_id, found.expires))

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
        return await asyncio.to_thread(self._auditor().submit, asked, owner=_owner(request))

    async def audits(self, request: Request) -> AuditList:
        """The audits of the key's owner."""
        found = await asyncio.to_thread(self._auditor().listed, owner=_owner(request))
        return AuditList(audits=tuple(found))

    async def audit(self, audit_id: Id, request: Request) -> Audit:
        """An audit's state."""
        return await asyncio.to_thread(self._auditor().find, audit_id, owner=_owner(request))

    async def report(self, audit_id: Id, request: Request) -> Response:
        """The report of an audit that has succeeded."""
        page = await asyncio.to_thread(self._auditor().report, audit_id, owner=_owner(request))
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    async def delete_audit(self, audit_id: Id, request: Request) -> None:
        """Stops an audit that runs, and deletes what it wrote."""
        await asyncio.to_thread(self._auditor().delete, audit_id, owner=_owner(request))

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
        self, request: Request, model: str, work: Work, *, keep: bool = False, noise: _Noise = (None, None)
    ) -> Response:
        owner = _owner(request)
        if EVENTS in request.headers.get("accept", ""):
            items = _in_time(self.services.backend.watch(model, work), request.state.deadline)
            events = self._events(owner, model, items, request.state.instance, keep=keep, noise=noise)
            return StreamingResponse(events, media_type=EVENTS, headers={"X-Accel-Buffering": "no"})
        with self.metrics.calling(model):
            made = await self.services.backend.make(model, work)
        if isinstance(made, ProblemError):
            raise made
        answer = await self._packed(owner, model, made, keep=keep, noise=noise)
        return Response(answer.model_dump_json(), media_type="application/json")

    async def _events(
        self, owner: str, model: str, items: _Items, instance: str, *, keep: bool, noise: _Noise
    ) -> AsyncIterator[str]:
        """``preview`` while it is made, then ``answer`` or ``problem``."""
        with self.metrics.calling(model):
            async for item in items:
                if isinstance(item, Preview):
                    yield _event("preview", json.dumps(vars(item)))
                elif isinstance(item, ProblemError):
                    yield _event("problem", item.document(instance).model_dump_json())
                else:
                    answer = await self._packed(owner, model, item, keep=keep, noise=noise)
                    yield _event("answer", answer.model_dump_json())

    async def _packed(
        self, owner: str, model: str, made: Made, *, keep: bool, noise: _Noise
    ) -> CounterfactualAnswer:
        self.metrics.made(model, made)
        if keep:
            noise = await self.services.backend.keep(made.kept, owner=owner, model=model)
        return CounterfactualAnswer(
            noise_id=noise[0],
            expires=noise[1],
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
    """Whose key the guard found on a request; none that it did not ask for a key comes further."""
    owner = getattr(request.state, "owner", None)
    if owner is None:
        raise ProblemError("unauthorised", "The key is missing or unknown.")
    return str(owner)


async def _in_time(items: _Items, deadline: asyncio.Timeout) -> _Items:
    """The items; where they are not over at the deadline, a problem is the last, and no more are made."""
    ends = deadline.when()
    assert ends is not None
    deadline.reschedule(ends + _TELLING_SECONDS)
    while True:
        try:
            yield await asyncio.wait_for(anext(items), ends - asyncio.get_running_loop().time())
        except StopAsyncIteration:
            return
        except TimeoutError:
            yield ProblemError("deadline", "It was not done within the time that a request may take.")
            return


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
