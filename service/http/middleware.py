"""Around every request: its id, its one log line, its numbers, and the last catch for unexpected errors."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import AbstractContextManager, suppress
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from structlog.contextvars import bound_contextvars

from service import tracing
from service.http.auth import refuse_foreign_name, refuse_foreign_page
from service.http.errors import Failure, failure_of, internal, shorten
from service.metrics import known_method

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})
_NAMES = frozenset({"gallery", "stream", "snapshot"})
_SHOWN_IN_SPANS = frozenset({"stream", "gallery", "queries", "state_version", "code"})
CLIENT_LEFT = 499
SWITCHED = 101

log = structlog.get_logger("attune.http")


class Gate:
    """ASGI middleware, written against the protocol itself because it lies on the hot path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._talk(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        with bound_contextvars(request_id=exchange.id):
            if not tracing.enabled() or scope["path"] in _QUIET:
                await self._answer(exchange, scope, receive)
                return
            with tracing.attach(_context_of(scope)), _server_span(scope, exchange.id) as span:
                await self._answer(exchange, scope, receive)
                exchange.describe(span)

    async def _answer(self, exchange: _Exchange, scope: Scope, receive: Receive) -> None:
        try:
            refuse_foreign_name(scope)
            refuse_foreign_page(scope)
            await self.app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_LEFT
        except Exception as error:
            await exchange.fail(self._failure(error, exchange), receive)
        finally:
            exchange.record()

    async def _talk(self, scope: Scope, receive: Receive, send: Send) -> None:
        talk = _Talk(scope, send)
        with bound_contextvars(request_id=talk.id):
            try:
                refuse_foreign_name(scope)
                await self.app(scope, receive, talk.send)
            except (ClientDisconnect, WebSocketDisconnect):
                pass  # it left first; the log line says so
            except Exception as error:
                await talk.fail(self._failure(error, talk))
            finally:
                talk.record()

    def _failure(self, error: Exception, exchange: _Exchange | _Talk) -> Failure:
        failure = failure_of(error)
        if failure is None or failure.status == 500:
            log.error("unexpected error", exc_info=error, **exchange.fields())
        return failure or internal(exchange.id)


class _Named:
    """What a request and a WebSocket have in common: an id, and what is noted for the log."""

    def __init__(self, scope: Scope, send: Send) -> None:
        offered = Headers(scope=scope).get("x-request-id", "")
        self.id = offered if _ID.fullmatch(offered) else uuid.uuid4().hex
        self._scope = scope
        self._send = send
        self._began = time.perf_counter()
        self._noted: dict[str, Any] = scope.setdefault("attune", {})
        self._noted["request_id"] = self.id

    def fields(self) -> dict[str, Any]:
        """What every log line says: the id, what the route noted, what the path names."""
        fields = dict(self._noted)
        for name, value in self._scope.get("path_params", {}).items():
            if name in _NAMES and isinstance(value, str) and len(value) <= 128 and _ID.fullmatch(value):
                fields.setdefault(name, value)
        trace_id = tracing.trace_id()
        return fields if trace_id is None else {**fields, "trace_id": trace_id}


class _Talk(_Named):
    """One WebSocket, from its handshake to its end."""

    def __init__(self, scope: Scope, send: Send) -> None:
        super().__init__(scope, send)
        self._status = CLIENT_LEFT
        self._close: int | None = None
        self._opened = False

    async def send(self, message: Message) -> None:
        if message["type"] == "websocket.accept":
            self._opened, self._status = True, SWITCHED
        elif message["type"] == "websocket.http.response.start":
            self._opened, self._status = True, message["status"]
        elif message["type"] == "websocket.close":
            self._status = self._status if self._opened else 403
            self._opened, self._close = True, message.get("code", 1000)
        await self._send(message)

    async def fail(self, failure: Failure) -> None:
        """Refuse the handshake with `failure` as a response; an open one just ends, with 1011."""
        self._noted["code"] = failure.code
        with suppress(OSError, RuntimeError):  # it is gone already
            if self._opened:
                await self.send({"type": "websocket.close", "code": 1011, "reason": failure.code})
            elif "websocket.http.response" in self._scope.get("extensions", {}):
                response = failure.response()
                start = {"status": failure.status, "headers": response.raw_headers}
                await self.send({"type": "websocket.http.response.start", **start})
                await self.send({"type": "websocket.http.response.body", "body": response.body})
            else:
                await self.send({"type": "websocket.close", "code": 1008, "reason": failure.code})

    def record(self) -> None:
        seconds = time.perf_counter() - self._began
        route = _route(self._scope)
        _count(self._scope, route=route, method="GET", status=self._status, seconds=None)
        log.info(
            "websocket",
            route=route,
            status=self._status,
            close=self._close,
            ms=round(seconds * 1000, 2),
            **self.fields(),
        )


class _Exchange(_Named):
    """One request and its response."""

    def __init__(self, scope: Scope, send: Send) -> None:
        super().__init__(scope, send)
        self.status = CLIENT_LEFT
        self._started = False

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
        self._noted["code"] = failure.code
        await failure.response()(self._scope, receive, self.send)

    def record(self) -> None:
        seconds = time.perf_counter() - self._began
        route = _route(self._scope)
        # A streamed answer takes as long as its client likes, which says nothing of this server.
        timed = None if self._noted.pop("streamed", False) else seconds
        _count(self._scope, route=route, method=self._scope["method"], status=self.status, seconds=timed)
        write = log.debug if route in _QUIET and self.status < 400 else log.info
        write(
            "request",
            route=route,
            method=self._scope["method"],
            status=self.status,
            ms=round(seconds * 1000, 2),
            **self.fields(),
        )

    def describe(self, span: tracing.Span) -> None:
        """Name the server span and say how it ended, now that route and status are known."""
        route = getattr(self._scope.get("route"), "path", None)
        if route is not None:
            span.set_attribute("http.route", route)
        method = known_method(self._scope["method"])
        span.update_name(f"{method or 'HTTP'} {route}" if route else method or "HTTP")
        span.set_attribute("http.response.status_code", self.status)
        for name, value in self.fields().items():
            if name in _SHOWN_IN_SPANS and value is not None:
                span.set_attribute(f"attune.{name}", value)
        if self.status >= 500:
            tracing.mark_failed(span, str(self.status))


def _count(scope: Scope, **observed: Any) -> None:
    app = scope.get("app")
    engine = app.state.engine if app is not None else None
    if engine is not None:
        engine.metrics.observe_request(**observed)


def _server_span(scope: Scope, request_id: str) -> AbstractContextManager[tracing.Span]:
    """After the semantic conventions of HTTP servers; never the query string, which may hold filters."""
    method = known_method(scope["method"])
    attributes = {
        "http.request.method": method or "_OTHER",
        "url.path": shorten(scope["path"]),
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
        "attune.request_id": request_id,
    }
    return tracing.span(method or "HTTP", kind="server", **attributes)


def _context_of(scope: Scope) -> dict[str, str]:
    """The trace that the client is in, if it says so."""
    headers = Headers(scope=scope)
    return {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}


def _route(scope: Scope) -> str:
    """The route's template: bounded, and without names."""
    return getattr(scope.get("route"), "path", "unknown")
