"""What happens on this server, told to whoever listens: one poller for all of them, and no backlog.

    engine -> poller -> board -> listener -> client

The board holds the newest picture as bytes that are ready to be sent. A listener remembers no more than which
revision of what it has told; whenever its client takes something again, it tells what has changed since. So a
slow client costs nothing, and misses only what was out of date by then. The poller runs while somebody
listens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import structlog
from anyio import to_thread
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import NotReady
from service.http.classify_stream import ClientStoppedReading, OpenStreams, TooManyConnections, end_now
from service.http.dependencies import unless_client_leaves
from service.http.engine import Card, Engine
from service.http.errors import failure_of, internal
from service.version import VERSION

RETRY_MS = 2000
"""After so long a client comes back when its connection ends."""
BEAT_S = 10.0
"""A comment is sent so often, so that neither proxies nor clients take the connection for dead."""
RENEW_S = 5.0
"""The server's figures are told so often though nothing has changed."""
PIECE_BYTES = 1 << 18
"""What is handed to a connection at a time."""
STRETCH = 10
"""Pause between two listings of streams, at least, over the worker's time that one takes."""

log = structlog.get_logger("attune.http")


@dataclass(frozen=True)
class Shown:
    """JSON of one thing, and the revision in which it last changed."""

    text: bytes
    revision: int


@dataclass(frozen=True)
class Board:
    """The newest picture; replaced as a whole.

    trouble  why the last listing failed; None: it did not
    streams  cards by name, the last used first; None: not listed yet
    depth    how many of the last used were asked for
    total    streams that there are
    """

    server: Shown | None = None
    trouble: Shown | None = None
    streams: Mapping[str, Shown] | None = None
    depth: int = 0
    total: int | None = None
    at: float = 0.0


@dataclass(eq=False)
class Listener:
    """One client: what it was told.

    most  streams that it wants to see: the last used
    news  set when the board has changed
    """

    most: int
    news: asyncio.Event = field(default_factory=asyncio.Event)
    _streams: dict[str, int] | None = None
    _total: int | None = None
    _server: int = 0
    _trouble: int = 0
    _id: int = 0

    def catch_up(self, board: Board) -> list[bytes]:
        """Events that make what was told the picture on the board."""
        events = []
        if board.server is not None and board.server.revision != self._server:
            self._server = board.server.revision
            events.append(self._event(b"server", board.server.text))
        if board.trouble is not None:
            if board.trouble.revision != self._trouble:
                self._trouble = board.trouble.revision
                events.append(self._event(b"trouble", board.trouble.text))
        elif board.streams is not None and board.depth >= self.most:
            events += self._catch_up_on(board.streams, board)
        return events

    def _catch_up_on(self, streams: Mapping[str, Shown], board: Board) -> Iterator[bytes]:
        latest = dict(islice(streams.items(), self.most))
        whole, told = self._streams is None, self._streams or {}
        changed = [shown.text for name, shown in latest.items() if told.get(name) != shown.revision]
        gone = [name for name in told if name not in latest]
        if not (whole or changed or gone or self._trouble or self._total != board.total):
            return
        self._streams = {name: shown.revision for name, shown in latest.items()}
        self._total, self._trouble = board.total, 0
        head = to_json({"at": board.at, "total": board.total, "whole": whole, "gone": gone})
        yield self._event(b"streams", head[:-1] + b',"streams":[' + b",".join(changed) + b"]}")

    def _event(self, name: bytes, data: bytes) -> bytes:
        self._id += 1
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (self._id, name, data)


class Broadcaster:
    """The listeners of this process, and what polls for them. All of it runs on one event loop."""

    def __init__(
        self, engine: Callable[[], Engine | None], *, most_listeners: int, interval_s: float
    ) -> None:
        self._engine_now = engine
        self._most_listeners = most_listeners
        self._interval_s = interval_s
        self._listeners: set[Listener] = set()
        self._poller: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._revision = 0
        self.board = Board()

    @property
    def polling(self) -> bool:
        return self._poller is not None

    @contextmanager
    def listening(self, most: int) -> Iterator[Listener]:
        """Raises TooManyConnections."""
        if len(self._listeners) >= self._most_listeners:
            raise TooManyConnections(self._most_listeners)
        listener = Listener(most)
        self._listeners.add(listener)
        if self._poller is None:
            # A context of its own: what it logs is not about the request of whoever came first.
            self._poller = asyncio.get_running_loop().create_task(self._poll(), context=Context())
        elif most > self.board.depth:
            self._wanted.set()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            if not self._listeners:
                self._poller.cancel()
                self._poller = None
                self.board = Board()

    async def _poll(self) -> None:
        listed = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll_streams(listed))
            tasks.create_task(self._poll_server(listed))

    async def _poll_streams(self, listed: asyncio.Event) -> None:
        while True:
            self._wanted.clear()
            pause_s = self._interval_s
            try:
                seconds = await self._list_streams(self._wanted_most())
                pause_s = max(pause_s, STRETCH * seconds)
            except Exception as error:  # the boundary: whoever listens is told, and the next poll may succeed
                self._show_trouble(error)
            listed.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wanted.wait()

    def _wanted_most(self) -> int:
        """Of whoever wants most; the last may have left just now."""
        return max((listener.most for listener in self._listeners), default=1)

    async def _list_streams(self, most: int) -> float:
        """-> seconds of a worker's time that it took."""
        engine = self._engine()
        latest = await engine.latest_streams(most)
        waiting = engine.waiting_by_stream()
        revision, before = self._next_revision(), self.board.streams or {}
        streams = await to_thread.run_sync(_shown, latest["streams"], waiting, before, revision)
        same = streams.keys() == before.keys() and all(streams[name] is before[name] for name in streams)
        changed = not same or (most, latest["total"]) != (self.board.depth, self.board.total)
        changed = changed or self.board.trouble is not None
        self.board = replace(
            self.board, trouble=None, streams=streams, depth=most, total=latest["total"], at=time.time()
        )
        if changed:
            self._tell()
        return float(latest["seconds"])

    def _show_trouble(self, error: Exception) -> None:
        failure = failure_of(error)
        if failure is None or failure.status == 500:
            log.error("unexpected error", exc_info=error)
        message = (failure or internal("")).message
        text = to_json({"message": message})
        if self.board.trouble is None or self.board.trouble.text != text:
            log.warning("streams_not_listed", why=message)
            self.board = replace(self.board, trouble=Shown(text, self._next_revision()))
            self._tell()

    async def _poll_server(self, listed: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        await listed.wait()  # the figures tell how many streams there are
        figures: dict[str, Any] = {}
        told_at = 0.0
        while True:
            before, figures = figures, self._figures(figures)
            if figures != before or loop.time() - told_at >= RENEW_S:
                text = to_json({"at": time.time(), **figures}, inf_nan_mode="null")
                self.board = replace(self.board, server=Shown(text, self._next_revision()))
                told_at = loop.time()
                self._tell()
            await asyncio.sleep(self._interval_s)

    def _figures(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Of a server that is not ready, what was known of it last. A capacity of 0: never known."""
        try:
            described, ready = self._engine().describe_models(), True
        except Exception:  # the poll of the streams tells why
            described, ready = dict(before), False
        return {
            "version": VERSION,
            "ready": ready,
            "queue": described.get("queue") or {"items": 0, "capacity": 0},
            "worker": described.get("worker"),
            "workers": (described.get("redis") or {}).get("workers"),
            "streams_in_memory": described.get("streams_in_memory"),
            "streams": self.board.total,
        }

    def _engine(self) -> Engine:
        engine = self._engine_now()
        if engine is None or not engine.ready:
            raise NotReady(
                f"the server is not ready: {'starting' if engine is None else engine.why_not_ready}"
            )
        return engine

    def _next_revision(self) -> int:
        self._revision += 1
        return self._revision

    def _tell(self) -> None:
        for listener in self._listeners:
            listener.news.set()


def _shown(
    cards: list[Card], waiting: Mapping[str, int] | None, before: Mapping[str, Shown], revision: int
) -> dict[str, Shown]:
    """The cards as JSON; those that are the same as before, to the byte, keep their revision.

    In a thread: a thousand cards are megabytes.
    """
    shown: dict[str, Shown] = {}
    for card in cards:
        name = card["name"]
        count = None if waiting is None else waiting.get(name, 0)
        text = to_json({**card, "waiting": count}, inf_nan_mode="null")
        known = before.get(name)
        shown[name] = known if known is not None and known.text == text else Shown(text, revision)
    return shown


class EventStream(Response):
    """Server-sent events, until the client leaves or the server shuts down."""

    media_type = "text/event-stream"

    def __init__(
        self, broadcaster: Broadcaster, streams: OpenStreams, *, most: int, write_timeout_s: float
    ) -> None:
        self.background = None
        self.status_code = 200
        self._broadcaster = broadcaster
        self._streams = streams
        self._most = most
        self._write_timeout_s = write_timeout_s
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})  # for nginx

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streams.closing:
            raise NotReady("the server is shutting down")
        with self._broadcaster.listening(self._most) as listener:
            await unless_client_leaves(Request(scope, receive), self._until_shutdown(listener, send))

    async def _until_shutdown(self, listener: Listener, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as telling:
                with self._streams.stopped_by(partial(end_now, telling)):
                    await self._tell(listener, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, listener: Listener, send: Send) -> None:
        loop = asyncio.get_running_loop()
        await self._write(send, b"retry: %d\n\n" % RETRY_MS)
        beat_at = loop.time() + BEAT_S
        while True:
            listener.news.clear()
            for event in listener.catch_up(self._broadcaster.board):
                await self._write(send, event)
            if loop.time() >= beat_at:
                await self._write(send, b": beat\n\n")
                beat_at = loop.time() + BEAT_S
            with suppress(TimeoutError):
                async with asyncio.timeout_at(beat_at):
                    await listener.news.wait()

    async def _write(self, send: Send, data: bytes) -> None:
        try:
            # In pieces, so that of what a slow client has yet to take only one is held a second time.
            for start in range(0, len(data), PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                async with asyncio.timeout(self._write_timeout_s):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except TimeoutError:
            raise ClientStoppedReading from None
