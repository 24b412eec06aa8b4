"""Both ends of a streaming connection, message by message, without a server: what ASGI would carry."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any, Self

from fastapi import FastAPI

PATIENCE_S = 20.0
"""Longer than any step takes; a test that hangs fails after it."""


class Connection:
    """One connection to /classify; the application runs as a task while it is open.

    taken    how many messages of the client the application has fetched
    reading  cleared: the client takes no answers, and whoever writes to it waits
    """

    def __init__(self, app: FastAPI, query: str = "", headers: dict[str, str] | None = None) -> None:
        self._app = app
        self._scope: dict[str, Any] = {
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "path": "/classify",
            "raw_path": b"/classify",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "server": ("attune", 80),
            "client": ("client", 1),
            "root_path": "",
        }
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.taken = 0
        self.reading = asyncio.Event()
        self.reading.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._task.cancel()
        await self.ended()

    async def _run(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        message = await self._to_app.get()
        self.taken += 1
        return message

    async def _send(self, message: Any) -> None:
        await self.reading.wait()
        self._from_app.put_nowait(dict(message))

    def put(self, message: dict[str, Any]) -> None:
        self._to_app.put_nowait(message)

    async def message(self) -> dict[str, Any]:
        """The next message of the application."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._from_app.get()

    @property
    def silent(self) -> bool:
        return self._from_app.empty()

    async def ended(self) -> None:
        """Returns when the application has ended."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()


class Ndjson(Connection):
    """One POST whose body is sent bit by bit."""

    def __init__(self, app: FastAPI, query: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(app, query, {"Content-Type": "application/x-ndjson", **(headers or {})})
        self._scope |= {"type": "http", "method": "POST", "scheme": "http"}
        self.status = 0

    def send(self, *lines: Any) -> None:
        """Each as a line: bytes and text as they are, all else as JSON."""
        for line in lines:
            self.send_part(_bytes(line) + b"\n")

    def send_part(self, part: bytes) -> None:
        self.put({"type": "http.request", "body": part, "more_body": True})

    def finish(self) -> None:
        self.put({"type": "http.request", "body": b"", "more_body": False})

    def leave(self) -> None:
        self.put({"type": "http.disconnect"})

    async def started(self) -> int:
        message = await self.message()
        assert message["type"] == "http.response.start"
        self.status = message["status"]
        return self.status

    async def line(self) -> dict[str, Any]:
        """The next line of the answer; {} at its end."""
        if not self.status:
            assert await self.started() == 200
        message = await self.message()
        if not message.get("more_body"):
            assert message.get("body", b"") == b""
            return {}
        body: bytes = message["body"]
        assert body.endswith(b"\n")
        assert body.count(b"\n") == 1
        return dict(json.loads(body))

    async def rest(self) -> list[dict[str, Any]]:
        """All further lines, to the end of the answer."""
        lines = []
        while line := await self.line():
            lines.append(line)
        return lines


class Socket(Connection):
    """One WebSocket."""

    def __init__(self, app: FastAPI, query: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(app, query, headers)
        self._scope |= {"type": "websocket", "scheme": "ws", "subprotocols": []}
        self._scope["extensions"] = {"websocket.http.response": {}}
        self.put({"type": "websocket.connect"})

    async def accepted(self) -> Self:
        assert (await self.message())["type"] == "websocket.accept"
        return self

    async def refused(self) -> tuple[int, dict[str, Any]]:
        """The status and the error of a handshake that is refused."""
        start, body = await self.message(), await self.message()
        assert start["type"] == "websocket.http.response.start"
        return start["status"], json.loads(body["body"])["error"]

    def send(self, *messages: Any) -> None:
        for message in messages:
            self.put({"type": "websocket.receive", "text": _bytes(message).decode()})

    def send_bytes(self, data: bytes) -> None:
        self.put({"type": "websocket.receive", "bytes": data})

    def leave(self) -> None:
        self.put({"type": "websocket.disconnect", "code": 1006})

    async def line(self) -> dict[str, Any]:
        """The next message; of the close its code and reason."""
        message = await self.message()
        if message["type"] == "websocket.close":
            return {"close": message["code"], "reason": message["reason"]}
        return dict(json.loads(message["text"]))


def _bytes(line: Any) -> bytes:
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line)).encode()
