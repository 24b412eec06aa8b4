"""The application: routes, the one error shape, and the engine's life."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from service.http.engine import Engine
from service.http.errors import respond
from service.http.middleware import Gate
from service.http.openapi import FAILURES, document
from service.http.routes import galleries, health, models, retrieve, streams
from service.settings import Settings
from service.version import VERSION

DESCRIPTION = """\
Cross-modal search that keeps its quality when the queries drift. Every failure has the body
`{"error": {"code", "message", "details"}}`."""


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The application of one server.

    Without `engine`, one is started with the application and closed with it; a given one stays its owner's.
    """
    app = FastAPIOffline(  # /docs from this server's own files, so that it also works without the internet
        title="Attune",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan,
        responses=FAILURES,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.engine = engine
    app.state.start_error = None
    # Decoding is CPU work: more threads than cores only hold more pictures in memory at once.
    app.state.decoders = CapacityLimiter(max(2, min(8, os.cpu_count() or 2)))
    app.add_middleware(Gate)
    for error in (HTTPException, RequestValidationError):
        app.add_exception_handler(error, respond)
    for module in (retrieve, galleries, streams, models, health):
        app.include_router(module.router)
    document(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    if app.state.engine is not None:
        yield
        return
    from service.engine import Engine as RealEngine  # here, because it loads torch

    try:
        engine: Engine = await RealEngine.start(app.state.settings)
    except Exception as error:
        app.state.start_error = error
        raise
    app.state.engine = engine
    try:
        yield
    finally:
        await engine.close()
