"""The application: routes, the one error shape, and the engine's life."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Protocol

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from service import tracing
from service.http.classify_stream import OpenStreams
from service.http.corruptions import share_of
from service.http.dependencies import RateLimits
from service.http.engine import Engine
from service.http.errors import respond
from service.http.events import Broadcaster
from service.http.middleware import Gate
from service.http.openapi import FAILURES, document
from service.http.page import console_of
from service.http.routes import (
    calibrations,
    classify,
    console,
    corruptions,
    demo,
    events,
    galleries,
    health,
    models,
    retrieve,
    streams,
)
from service.metrics import Metrics
from service.settings import Settings
from service.version import VERSION

DESCRIPTION = """\
Cross-modal search that keeps its quality when the queries drift. Every failure has the body
`{"error": {"code", "message", "details"}}`."""


class Served(Protocol):
    """What every process shows of itself, whatever else it does."""

    metrics: Metrics

    @property
    def ready(self) -> bool: ...
    @property
    def why_not_ready(self) -> str: ...
    async def close(self) -> None: ...


Start = Callable[[Settings], Awaitable[Served]]


def create_app(settings: Settings, engine: Engine | None = None, *, start: Start | None = None) -> FastAPI:
    """The application of one server.

    Without `engine`, one is started with the application (by `start`; None: `service.engine.Engine.start`)
    and closed with it; a given one stays its owner's.
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
    # Decoding is CPU work: more threads than cores only hold more pictures in memory at once.
    app.state.decoders = CapacityLimiter(max(2, min(8, os.cpu_count() or 2)))
    app.state.corruptors = share_of(app.state.decoders)
    app.state.limits = _limits(settings)
    app.state.live_streams = OpenStreams(settings.classify_connections)
    app.state.events = Broadcaster(
        lambda: app.state.engine,
        most_listeners=settings.event_connections,
        interval_s=settings.events_interval_s,
    )
    app.state.console = console_of(settings)
    parts = [
        retrieve,
        classify,
        galleries,
        calibrations,
        streams,
        events,
        models,
        corruptions,
        demo,
        console,
        health,
    ]
    _equip(app, settings, engine, start, parts)
    document(app)
    return app


def create_health_app(
    settings: Settings, served: Served | None = None, *, start: Start | None = None
) -> FastAPI:
    """The application of a process that answers no queries itself: probes and metrics, nothing else.

    `served` and `start` as `engine` and `start` of `create_app`.
    """
    app = FastAPI(lifespan=_lifespan, openapi_url=None, redirect_slashes=False)
    app.state.limits = None
    app.state.live_streams = None
    app.state.console = None
    _equip(app, settings, served, start, [health])
    return app


def _equip(
    app: FastAPI, settings: Settings, served: Served | None, start: Start | None, parts: list[ModuleType]
) -> None:
    app.state.settings = settings
    app.state.engine = served
    app.state.start = start or _start_engine
    app.state.start_error = None
    app.add_middleware(Gate)
    for error in (HTTPException, RequestValidationError):
        app.add_exception_handler(error, respond)
    for part in parts:
        app.include_router(part.router)


def _limits(settings: Settings) -> RateLimits | None:
    if settings.rate_limit_per_key is None and settings.rate_limit_per_stream is None:
        return None
    from service.http.limits import Limits  # here, because it loads the Redis client

    return Limits(settings)


async def _start_engine(settings: Settings) -> Served:
    from service.engine import Engine as RealEngine  # here, because it loads torch

    return await RealEngine.start(settings)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    given: Served | None = app.state.engine
    try:
        tracing.configure(app.state.settings)
        served = given or await app.state.start(app.state.settings)
    except Exception as error:
        app.state.start_error = error
        raise
    app.state.engine = served
    try:
        yield
    finally:
        if given is None:
            await served.close()
        if app.state.limits is not None:
            await app.state.limits.close()
        await to_thread.run_sync(tracing.shutdown)  # it waits for the collector
