"""The HTTP application: routes, guard, page, and what is done beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from counterray import __version__
from serve.documentation import document
from serve.guard import Guard
from serve.limits import Limiter
from serve.metrics import Metrics
from serve.problems import ProblemError, problem_of
from serve.routes import Routes, Services
from serve.uploads import Decoders

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
"""The page's files."""

_AUDIT_SECONDS = 5.0
"""How often audits whose turn has come are started."""

_KEY_SECONDS = 5.0
"""How often keys are read anew: a new one opens, and a revoked one is refused, after this."""


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
        lifespan=lambda app: _lifespan(services, metrics, decoders),
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
    if "endpoint" not in request.scope:  # no route: the page's folder has no such file
        raise ProblemError("not-found", f"{request.method}: there is no such path.")
    kind = kinds.get(error.status_code, "internal")
    raise ProblemError(kind, f"{request.method}: {error.detail}.")


async def _not_valid(request: Request, error: Exception) -> Response:
    """A part of the path that is not what it has to be."""
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
    raise ProblemError("invalid-request", said)


@asynccontextmanager
async def _lifespan(services: Services, metrics: Metrics, decoders: Decoders) -> AsyncIterator[None]:
    """Holds decoders, reads keys anew, and starts audits in their turn, as long as the gateway lives."""
    decoders.start()
    tasks = [asyncio.create_task(_repeated(services.keyring.refresh, _KEY_SECONDS, "read the keys anew"))]
    if (auditor := services.auditor) is not None:
        work = _repeated(lambda: metrics.audited(auditor.advance()), _AUDIT_SECONDS, "look after the audits")
        tasks.append(asyncio.create_task(work))
    yield
    for task in tasks:
        task.cancel()
    decoders.close()


async def _repeated(work: Callable[[], None], seconds: float, doing: str) -> None:
    """Does it again and again in a thread, whatever it fails at."""
    while True:
        try:
            await asyncio.to_thread(work)
        except Exception as error:
            said = problem_of(error, doing=doing).detail
            logger.warning("%s; it is tried again in %g s", said.removesuffix("."), seconds)
        await asyncio.sleep(seconds)
