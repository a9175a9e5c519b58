"""The HTTP application: routes, guard, page, and what is done beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from counterray import __version__
from counterray.storage import StorageError
from serve.auditor import Auditor
from serve.documentation import document
from serve.guard import Guard
from serve.limits import Limiter
from serve.metrics import Metrics
from serve.problems import ProblemError
from serve.routes import Routes, Services
from serve.uploads import Decoders

PAGE = Path(__file__).parent / "page"
"""The page's files."""

_AUDIT_SECONDS = 5.0
"""How often audits whose turn has come are started."""


def create_app(services: Services) -> FastAPI:
    """The application, guarded.

    Raises:
        ConfigError: If a limit cannot be read.
    """
    settings, metrics = services.settings, Metrics(services.gateway)
    limiter, decoders = Limiter(settings.limits), Decoders(settings.uploads)
    app = FastAPI(
        title="counterray",
        version=__version__,
        docs_url=None,  # Its page would load scripts from elsewhere.
        redoc_url=None,
        lifespan=lambda app: _lifespan(services, decoders),
    )
    routes = Routes(services, metrics, limiter, decoders)
    app.include_router(routes.router())
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    # Asked for all that is no route; a mount would also take the routes' wrong methods.
    app.router.default = StaticFiles(directory=PAGE, html=True)
    app.add_middleware(Guard, settings=settings, keyring=services.keyring, limiter=limiter, metrics=metrics)
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses."""
    assert isinstance(error, HTTPException)
    kinds = {404: "not-found", 405: "method-not-allowed", 400: "unreadable-body"}
    kind = kinds.get(error.status_code, "internal")
    if "endpoint" not in request.scope:  # no route: the page's folder has no such file
        kind = "not-found"
    raise ProblemError(kind, f"{request.method}: {error.detail}.")


async def _not_valid(request: Request, error: Exception) -> Response:
    """A part of the path that is not what it has to be."""
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
    raise ProblemError("invalid-request", said)


@asynccontextmanager
async def _lifespan(services: Services, decoders: Decoders) -> AsyncIterator[None]:
    """Holds decoders, and starts audits in their turn, as long as the gateway lives."""
    decoders.start()
    task = asyncio.create_task(_advance(services.auditor)) if services.auditor is not None else None
    yield
    if task is not None:
        task.cancel()
    decoders.close()


async def _advance(auditor: Auditor) -> None:
    while True:
        # Storage or Ray may be away for a while; the next round tries again.
        with suppress(StorageError, ProblemError, ConnectionError, RuntimeError):
            await asyncio.to_thread(auditor.advance)
        await asyncio.sleep(_AUDIT_SECONDS)
