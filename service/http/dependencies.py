"""What the routes are handed: the settings, the engine, the pool that decodes pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, Protocol, TypeVar, cast

from anyio import CapacityLimiter
from fastapi import Depends
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from service import tracing
from service.errors import NotReady
from service.http.engine import Engine
from service.metrics import Metrics
from service.settings import Settings

Result = TypeVar("Result")


async def _settings(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


def engine_of(connection: HTTPConnection) -> Engine:
    """The engine, once it answers. Raises NotReady before."""
    engine: Engine | None = connection.app.state.engine
    if engine is None:
        raise NotReady("the server is starting")
    if not engine.ready:
        raise NotReady(f"the server is not ready: {engine.why_not_ready}")
    return engine


async def _engine(request: Request) -> Engine:
    return engine_of(request)


async def _decoders(request: Request) -> CapacityLimiter:
    return cast(CapacityLimiter, request.app.state.decoders)


class RateLimits(Protocol):
    """`service.http.limits.Limits`, which only servers with limits load."""

    async def charge(self, *, caller: str, stream: str | None, queries: int, metrics: Metrics) -> None: ...
    async def close(self) -> None: ...


async def _limits(request: Request) -> RateLimits | None:
    return cast(RateLimits | None, request.app.state.limits)


SettingsDep = Annotated[Settings, Depends(_settings)]
EngineDep = Annotated[Engine, Depends(_engine)]
DecodersDep = Annotated[CapacityLimiter, Depends(_decoders)]
LimitsDep = Annotated[RateLimits | None, Depends(_limits)]


def note(request: HTTPConnection, **fields: Any) -> None:
    """Add fields to the one log line of this request."""
    request.scope.setdefault("attune", {}).update(fields)


def carrier(request: HTTPConnection) -> dict[str, str]:
    """What travels with a job to whoever does it: this request's id, and the trace it is part of."""
    return tracing.inject(request_id=request.scope.get("attune", {}).get("request_id"))


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client goes away first.

    The body must have been read whole: what is received after it can only be the news of the disconnect.

    Raises:
        ClientDisconnect: the client left; nobody waits for an answer.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_until_disconnect(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        # Also when this request itself is cancelled (shutdown): neither task may outlive it.
        await _cancel(task)
        await _cancel(watcher)


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as forgotten
