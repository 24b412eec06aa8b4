"""The two connections that `LiveStream` runs over: one HTTP request with NDJSON both ways, or a WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.errors import ServiceError
from service.http.classify_schemas import FirstMessage
from service.http.classify_stream import (
    Line,
    LineSplitter,
    LiveStream,
    OpenStreams,
    StreamEnds,
    end_now,
    line_too_long,
    shutting_down,
)
from service.http.errors import Refusal, invalid
from service.settings import Settings

GOING_AWAY, POLICY, INTERNAL, TRY_LATER = 1001, 1008, 1011, 1013
_FIRST_FIELDS = frozenset(FirstMessage.model_fields)


class TooSlow(Refusal):
    def __init__(self, message: str, limit_s: float) -> None:
        super().__init__(408, "timeout", message, details={"limit_s": limit_s})


class NdjsonAnswer(Response):
    """Reads lines from the request's body while it writes lines into the response's."""

    media_type = "application/x-ndjson"

    def __init__(self, stream: LiveStream, streams: OpenStreams, settings: Settings) -> None:
        self.background = None
        self.status_code = 200
        self._stream = stream
        self._streams = streams
        self._settings = settings
        # Of a body that was not read to its end nothing more can be understood, hence no second request.
        self.init_headers(
            {"Connection": "close", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # for nginx
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def begin() -> None:
            """After the first `receive`, which tells clients to go on that asked (100-continue)."""
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def write(body: Mapping[str, Any]) -> None:
            await send({"type": "http.response.body", "body": _json(body) + b"\n", "more_body": True})

        with self._streams.place(), self._streams.stopped_by(self._stream.stop):
            chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
            lines = ndjson_lines(chunks, self._settings)
            try:
                await self._stream.run(lines, write, _body(receive, chunks), begin)
            finally:
                scope.setdefault("attune", {}).update(report(self._stream))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(receive: Receive, chunks: asyncio.Queue[bytes | None]) -> None:
    """Put the body into `chunks`, one ahead, so that a client that leaves is noticed.

    Raises ClientDisconnect in the end, unless cancelled.
    """
    more = True
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if not more:
            continue
        if chunk := message.get("body", b""):
            await chunks.put(chunk)
        more = message.get("more_body", False)
        if not more:
            await chunks.put(None)


async def ndjson_lines(chunks: asyncio.Queue[bytes | None], settings: Settings) -> AsyncIterator[Line]:
    """Lines of the body up to None. Only time spent waiting for the client counts against it.

    Raises:
        StreamEnds: a line was not whole in time, or none came.
    """
    loop = asyncio.get_running_loop()
    splitter = LineSplitter(settings.classify_line_bytes)
    index = 0
    left_s = settings.classify_idle_timeout_s
    while True:
        waited_from = loop.time()
        try:
            async with asyncio.timeout(left_s):
                chunk = await chunks.get()
        except TimeoutError:
            raise StreamEnds(_too_slow(splitter.begun, settings)) from None
        left_s -= loop.time() - waited_from
        was_begun, whole = splitter.begun, 0
        for line in splitter.rest() if chunk is None else splitter.feed(chunk):
            whole += 1
            if line is None:
                yield Line(index, error=line_too_long(settings.classify_line_bytes))
            elif line.strip():
                yield Line(index, line)
            else:
                continue
            index += 1
        if chunk is None:
            return
        if whole or not was_begun:
            begun = splitter.begun
            left_s = settings.classify_line_timeout_s if begun else settings.classify_idle_timeout_s


def _too_slow(begun: bool, settings: Settings) -> TooSlow:
    if begun:
        limit_s = settings.classify_line_timeout_s
        return TooSlow(f"a line must be whole within {limit_s:g} s of its first byte", limit_s)
    limit_s = settings.classify_idle_timeout_s
    return TooSlow(f"no line came within {limit_s:g} s; blank lines keep a stream open", limit_s)


class Socket:
    """The messages of an accepted WebSocket."""

    def __init__(self, websocket: WebSocket, settings: Settings) -> None:
        self._websocket = websocket
        self._settings = settings
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue(1)
        self._index = 0

    async def first(self, limit_s: float, streams: OpenStreams) -> tuple[FirstMessage, Line | None]:
        """What it begins with, and the line that the first message was if it began with none.

        Raises:
            Refusal: options or key that are none, or nothing at all in time.
            NotReady: the server shuts down.
            ClientDisconnect: it left.
        """
        try:
            async with asyncio.timeout(limit_s) as waiting:
                with streams.stopped_by(partial(end_now, waiting)):
                    message = await _message(self._websocket)
        except TimeoutError:
            if streams.closing:
                raise shutting_down() from None
            raise TooSlow(f"no message came within {limit_s:g} s", limit_s) from None
        if isinstance(message, str):
            try:
                return FirstMessage.model_validate_json(message, strict=True), None
            except ValidationError as error:
                mistakes = error.errors(include_input=False, include_url=False)
            if {mistake["loc"][0] for mistake in mistakes if mistake["loc"]} & _FIRST_FIELDS:
                raise invalid(mistakes)
        return FirstMessage(), self._line(message)

    async def lines(self, first: Line | None) -> AsyncIterator[Line]:
        """Raises StreamEnds where no message comes."""
        if first is not None:
            yield first
        while True:
            try:
                async with asyncio.timeout(self._settings.classify_idle_timeout_s):
                    message = await self._messages.get()
            except TimeoutError:
                raise StreamEnds(_too_slow(False, self._settings)) from None
            if message.strip():
                yield self._line(message)

    def _line(self, message: str | bytes) -> Line:
        index, self._index = self._index, self._index + 1
        if isinstance(message, bytes):
            text = "messages are text frames with JSON; sound and pictures go in as base64"
            return Line(index, error=Refusal(415, "unsupported_media_type", text))
        if len(message) > self._settings.classify_line_bytes:
            return Line(index, error=line_too_long(self._settings.classify_line_bytes))
        return Line(index, message)

    async def watch(self) -> None:
        """Fetch messages, one ahead, so that a client that leaves is noticed: ClientDisconnect then."""
        while True:
            await self._messages.put(await _message(self._websocket))

    async def write(self, body: Mapping[str, Any]) -> None:
        """Raises ClientDisconnect."""
        try:
            await self._websocket.send_text(_json(body).decode())
        except (WebSocketDisconnect, RuntimeError) as error:  # RuntimeError: the close has been sent already
            raise ClientDisconnect from error

    async def close(self, code: int, reason: str = "") -> None:
        try:
            await self._websocket.close(code, reason[:100])
        except (WebSocketDisconnect, RuntimeError) as error:
            raise ClientDisconnect from error


async def _message(websocket: WebSocket) -> str | bytes:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise ClientDisconnect
    text: str | None = message.get("text")
    data: bytes = message.get("bytes") or b""
    return data if text is None else text


def close_code(ended: ServiceError | None) -> int:
    """The WebSocket's close code for how a stream ended."""
    if ended is None:
        return 1000
    if ended.code == "too_many_connections":
        return TRY_LATER
    return GOING_AWAY if ended.status == 503 else INTERNAL if ended.status == 500 else POLICY


def report(stream: LiveStream) -> dict[str, Any]:
    """For the request's log line."""
    ended = stream.ended_early
    return {"lines": stream.lines, "failed": stream.failed} | ({} if ended is None else {"code": ended.code})


def _json(body: Mapping[str, Any]) -> bytes:
    return to_json(body, inf_nan_mode="null")
