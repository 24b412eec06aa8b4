"""Around every request: its id, its one log line, its numbers, and the last catch for unexpected errors."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.auth import refuse_foreign_page
from service.http.errors import Failure, failure_of, internal

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})
CLIENT_LEFT = 499

log = structlog.get_logger("attune.http")


class Gate:
    """ASGI middleware, written against the protocol itself because it lies on the hot path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        try:
            refuse_foreign_page(scope)
            await self.app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_LEFT
        except Exception as error:
            await exchange.fail(self._failure(error, exchange), receive)
        finally:
            exchange.record()

    def _failure(self, error: Exception, exchange: _Exchange) -> Failure:
        failure = failure_of(error)
        if failure is None or failure.status == 500:
            log.error("unexpected error", request_id=exchange.id, exc_info=error)
        return failure or internal(exchange.id)


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, send: Send) -> None:
        offered = Headers(scope=scope).get("x-request-id", "")
        self.id = offered if _ID.fullmatch(offered) else uuid.uuid4().hex
        self.status = CLIENT_LEFT
        self._scope = scope
        self._send = send
        self._started = False
        self._began = time.perf_counter()
        self._fields: dict[str, Any] = scope.setdefault("attune", {})

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = self.id
        await self._send(message)

    async def fail(self, failure: Failure, receive: Receive) -> None:
        """Answer with `failure`, unless an answer has begun: then the connection just ends."""
        if self._started:
            return
        self._fields["code"] = failure.code
        await failure.response()(self._scope, receive, self.send)

    def record(self) -> None:
        seconds = time.perf_counter() - self._began
        route = _route(self._scope)
        self._count(route, seconds)
        write = log.debug if route in _QUIET and self.status < 400 else log.info
        write(
            "request",
            route=route,
            method=self._scope["method"],
            status=self.status,
            ms=round(seconds * 1000, 2),
            request_id=self.id,
            **self._fields,
        )

    def _count(self, route: str, seconds: float) -> None:
        app = self._scope.get("app")
        engine = app.state.engine if app is not None else None
        if engine is not None:
            engine.metrics.observe_request(
                route=route, method=self._scope["method"], status=self.status, seconds=seconds
            )


def _route(scope: Scope) -> str:
    """The route's template: bounded, and without names."""
    return getattr(scope.get("route"), "path", "unknown")
