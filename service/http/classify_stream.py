"""Samples in and answers out over one connection, while both go on: what NDJSON and WebSocket share.

    lines -> reader -> window -> decoding threads -> asker -> engine.classify -> writer -> client

The window bounds what is held: a line has a place in it from when it was read until its answer was
written. While the window is full (a slow engine, or a client that does not read) nothing more is read, so
the client's own sending comes to a halt. Answers leave in the order of the lines; a line that fails has its
error in its place, and the stream goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from anyio import CapacityLimiter, to_thread
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from service.errors import DeadlineExceeded, NotReady, QueueFull, ServiceError, TooLarge
from service.http.classify_schemas import OPTION_NAMES, LiveOptions, SampleBody
from service.http.dependencies import RateLimits
from service.http.engine import Engine
from service.http.errors import Failure, Refusal, failure_of, internal, invalid
from service.http.responses import line_body
from service.http.samples import Decoder, RawSample
from service.messages import ClassifyRequest, Mode, Sample
from service.settings import Settings

MOST_DECODING = 4
"""Lines of one connection that are decoded at once: so many are held whole, as they were sent."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_LONGEST_END = 64

log = structlog.get_logger("attune.http")

Body = Mapping[str, Any]
Write = Callable[[Body], Awaitable[None]]


class ClientStoppedReading(ClientDisconnect):
    """The client leaves its answers unread: as good as gone."""


class StreamEnds(Exception):
    """Raised by what yields lines: no more will be read, and `error` says why."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(str(error))
        self.error = error


class TooManyConnections(Refusal):
    def __init__(self, most: int) -> None:
        super().__init__(
            503, "too_many_connections", f"{most} streaming requests are open already; come back later"
        )
        self.retry_after_s = 5.0


@dataclass(frozen=True)
class Line:
    """What a client sent in one piece, blank ones left out; or why it cannot be taken.

    index  from 0
    """

    index: int
    data: bytes | str = b""
    error: ServiceError | None = None


class LineSplitter:
    """Bytes as they arrive -> lines. A line that is too long is passed over without being kept."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._part = bytearray()
        self._bytes = 0

    @property
    def begun(self) -> bool:
        """Whether a line has begun that is not yet whole."""
        return self._bytes > 0

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """The lines that `chunk` completes; None stands for one that was too long."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._add(chunk[start:end])
            yield self._take()
            start = end + 1
        self._add(chunk[start:])

    def rest(self) -> Iterator[bytes | None]:
        """The last line, where no line break ends it."""
        if self.begun:
            yield self._take()

    def _add(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if self._bytes > self._most:
            self._part.clear()
        else:
            self._part += piece

    def _take(self) -> bytes | None:
        line = None if self._bytes > self._most else bytes(self._part)
        self._part.clear()
        self._bytes = 0
        return line


def line_too_long(most_bytes: int) -> TooLarge:
    return TooLarge(
        f"the line is longer than the {most_bytes} bytes that are accepted", details={"max_bytes": most_bytes}
    )


class OpenStreams:
    """The streaming requests of this process: how many there may be, and how they end at a shutdown."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._stops: set[Callable[[], None]] = set()
        self._held = {True: 0, False: 0}
        self.closing = False
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def place(self, *, proved: bool = True) -> Iterator[None]:
        """Those that have yet to prove that they may (`proved` False) take no places from those that may.

        Raises TooManyConnections, NotReady.
        """
        if self.closing:
            raise shutting_down()
        if self._held[proved] >= self._most:
            raise TooManyConnections(self._most)
        self._held[proved] += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._held[proved] -= 1
            if not self.count:
                self._empty.set()

    @contextmanager
    def stopped_by(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop` if the shutdown comes meanwhile."""
        self._stops.add(stop)
        if self.closing:
            stop()
        try:
            yield
        finally:
            self._stops.discard(stop)

    @property
    def count(self) -> int:
        return sum(self._held.values())

    async def close(self, grace_s: float) -> None:
        """Let every stream answer what it has read, say that it ends, and end; wait for them so long."""
        self.closing = True
        for stop in list(self._stops):
            stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()


@dataclass(frozen=True)
class Served:
    """What a stream works with, and for whom.

    caller  as rate limits count it
    trace   goes along with every request to the engine
    """

    settings: Settings
    engine: Engine
    threads: CapacityLimiter
    limits: RateLimits | None
    caller: str
    trace: Mapping[str, str]


class LiveStream:
    """One connection. Raises what `Decoder.of_request` and `batch_of` raise, before anything is read."""

    def __init__(self, options: LiveOptions, served: Served) -> None:
        settings = served.settings
        self._options = options
        self._served = served
        self._decoder = Decoder.of_request(options, settings, served.engine)
        self._mode = mode_of(options, settings)
        self._gathers = self._mode == "sync"
        batch = batch_of(options, settings)
        self._most = batch if self._gathers else settings.max_queries_per_request
        window = settings.classify_window_items
        self._window = asyncio.Semaphore(max(window, 2 * batch) if self._gathers else window)
        self._decoding = asyncio.Semaphore(MOST_DECODING)
        self._to_ask: asyncio.Queue[_Place | None] = asyncio.Queue()
        self._to_write: asyncio.Queue[_Place | None] = asyncio.Queue()
        self._next: _Place | None = None
        self._reading: asyncio.Timeout | None = None
        self._stopped = False
        self._last_word: ServiceError | None = None
        self.lines = 0
        self.failed = 0

    @property
    def ended_early(self) -> ServiceError | None:
        """Why not all lines were read, if so."""
        return self._last_word

    def stop(self) -> None:
        """Read no more, because the server shuts down; what was read is still answered."""
        self._stopped = True
        if self._reading is not None:
            end_now(self._reading)

    async def run(
        self,
        lines: AsyncIterator[Line],
        write: Write,
        watch: Coroutine[Any, Any, None],
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Answer every line; returns when the last answer was written.

        watch  fetches what the client sends, and raises when it is gone; cancelled at the end
        begin  done before anything is written, once `watch` runs

        Raises:
            ClientDisconnect: the client left or stopped reading. What it had asked is withdrawn.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                watcher = tasks.create_task(watch)
                tasks.create_task(self._read(lines, tasks))
                tasks.create_task(self._ask())
                if begin is not None:
                    await asyncio.sleep(0)
                    await begin()
                await self._write(write)
                watcher.cancel()
        except BaseExceptionGroup as group:
            left = group.subgroup(ClientDisconnect)
            if left is None:
                raise
            raise _first(left) from None

    async def _read(self, lines: AsyncIterator[Line], tasks: asyncio.TaskGroup) -> None:
        try:
            async with asyncio.timeout(None) as self._reading:
                if self._stopped:
                    self.stop()
                async for line in lines:
                    if _is_end(line.data):
                        break
                    await self._window.acquire()
                    await self._take(line, tasks)
        except TimeoutError:
            self._last_word = shutting_down()
        except StreamEnds as end:
            self._last_word = end.error
        self._reading = None
        self._to_ask.put_nowait(None)
        self._to_write.put_nowait(None)

    async def _take(self, line: Line, tasks: asyncio.TaskGroup) -> None:
        place = _Place(line.index, self._deadline_s())
        self.lines += 1
        self._to_ask.put_nowait(place)
        self._to_write.put_nowait(place)
        try:
            if line.error is not None:
                raise line.error
            await self._charge()
            await self._decoding.acquire()
        except ServiceError as error:
            place.fail(self._failure(error))
        except asyncio.CancelledError:
            place.fail(self._failure(shutting_down()))
            raise
        else:
            tasks.create_task(self._decode(place, line.data))

    def _deadline_s(self) -> float:
        longest_s = self._served.settings.request_timeout_s
        asked_ms = self._options.deadline_ms
        return longest_s if asked_ms is None else min(longest_s, asked_ms / 1e3)

    async def _charge(self) -> None:
        if self._served.limits is not None:
            await self._served.limits.charge(
                caller=self._served.caller,
                stream=self._options.stream,
                queries=1,
                metrics=self._served.engine.metrics,
            )

    async def _decode(self, place: _Place, data: bytes | str) -> None:
        try:
            place.id, sample = await to_thread.run_sync(self._sample, data, limiter=self._served.threads)
            place.ready(sample)
        except Exception as error:
            place.fail(self._failure(error))
        finally:
            self._decoding.release()

    def _sample(self, data: bytes | str) -> tuple[str | None, Sample]:
        """In a thread: a line can be megabytes of base64 or numbers."""
        body = parse_line(data)
        raw = RawSample.of_body("", body)
        self._decoder.check(raw)
        return body.id, self._decoder.decode(raw)

    async def _ask(self) -> None:
        while (first := await self._next_ready(None)) is not None:
            await self._answer(await self._batch(first))

    async def _batch(self, first: _Place) -> list[_Place]:
        """Lines to ask together: those that are ready now, or, where they gather, a batch of them."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (self._options.max_wait_ms / 1e3 if self._gathers else 0.0)
        batch = [first]
        while len(batch) < self._most and (place := await self._next_ready(until)) is not None:
            batch.append(place)
        return batch

    async def _next_ready(self, until: float | None) -> _Place | None:
        """The next line in order, once it is decoded; None at the end, or at `until`."""
        while True:
            try:
                async with asyncio.timeout_at(until):
                    if self._next is None:
                        self._next = await self._to_ask.get()
                    if self._next is None:
                        self._to_ask.put_nowait(None)  # the end stays the end
                        return None
                    await self._next.decoded.wait()
            except TimeoutError:
                return None
            place, self._next = self._next, None
            if not place.answer.done():
                return place

    async def _answer(self, batch: list[_Place]) -> None:
        """Ask, and where the queue is full ask again, until each line has its answer or met its deadline."""
        pause_s = _FIRST_PAUSE_S
        while waiting := [place for place in batch if not place.answer.done()]:
            try:
                answer = await self._served.engine.classify(self._request(waiting))
            except QueueFull as full:
                await asyncio.sleep(min(pause_s, full.retry_after_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except Exception as error:
                failure = self._failure(error)
                for place in waiting:
                    place.fail(failure)
            else:
                for position, place in enumerate(waiting):
                    place.settle(line_body(place.index, place.id, answer, position))

    def _request(self, places: list[_Place]) -> ClassifyRequest:
        options = self._options
        return ClassifyRequest(
            samples=tuple(place.sample for place in places if place.sample is not None),
            stream=options.stream,
            top=options.top,
            adapt=self._mode,
            labels=None if options.labels is None else tuple(options.labels),
            template=options.template,
            deadline_ms=max(1.0, max(place.left_s for place in places) * 1e3),
            trace=self._served.trace,
        )

    async def _write(self, write: Write) -> None:
        while (place := await self._to_write.get()) is not None:
            body = await place.answer
            self.failed += "error" in body
            await self._write_in_time(write, body)
            self._window.release()
        if self._last_word is not None:
            await self._write_in_time(write, error_body(self._failure(self._last_word)))

    async def _write_in_time(self, write: Write, body: Body) -> None:
        try:
            async with asyncio.timeout(self._served.settings.classify_write_timeout_s):
                await write(body)
        except TimeoutError:
            raise ClientStoppedReading from None

    def _failure(self, error: Exception) -> Failure:
        failure = failure_of(error)
        if failure is None or failure.status == 500:
            log.error("unexpected error", exc_info=error, stream=self._options.stream)
        return failure or internal(self._served.trace.get("request_id", ""))


class _Place:
    """One line on its way."""

    def __init__(self, index: int, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.index = index
        self.id: str | None = None
        self.sample: Sample | None = None
        self.decoded = asyncio.Event()
        """Set once there is a sample, or an answer without one."""
        self.answer: asyncio.Future[Body] = loop.create_future()
        self._deadline = loop.call_later(deadline_s, self._too_late, deadline_s)

    @property
    def left_s(self) -> float:
        return self._deadline.when() - asyncio.get_running_loop().time()

    def ready(self, sample: Sample) -> None:
        self.sample = sample
        self.decoded.set()

    def settle(self, body: Body) -> None:
        """The first answer counts: what comes after the deadline comes too late."""
        if not self.answer.done():
            self.answer.set_result(body)
        self._deadline.cancel()
        self.sample = None
        self.decoded.set()

    def fail(self, failure: Failure) -> None:
        self.settle({"index": self.index, **error_body(failure)})

    def _too_late(self, deadline_s: float) -> None:
        failure = failure_of(DeadlineExceeded(f"no answer within {deadline_s:g} s"))
        assert failure is not None
        self.fail(failure)


def error_body(failure: Failure) -> dict[str, Any]:
    return {"error": {"code": failure.code, "message": failure.message, "details": dict(failure.details)}}


def mode_of(options: LiveOptions, settings: Settings) -> Mode:
    """`auto` is what the server fixes, or `async`, because a line is one sample. In `sync` lines wait for
    a batch.
    """
    asked = settings.mode if options.adapt == "auto" else options.adapt
    return "async" if asked == "auto" else asked


def batch_of(options: LiveOptions, settings: Settings) -> int:
    """Lines of a batch. Raises Refusal 422 for more than the server adapts on at once."""
    most = settings.batch_size
    if options.batch is not None and options.batch > most:
        raise Refusal(
            422,
            "invalid_request",
            f"batch: at most {most}, the server's batch size",
            details={"max_batch": most},
        )
    return options.batch or most


def parse_line(data: bytes | str) -> SampleBody:
    """Raises Refusal: 400 no JSON, 422 no sample, `options_fixed` for an option in the middle of a stream."""
    try:
        return SampleBody.model_validate_json(data, strict=True)
    except ValidationError as error:
        mistakes = error.errors(include_input=False, include_url=False)
    if mistakes[0]["type"] == "json_invalid":
        why = str(mistakes[0]["msg"]).removeprefix("Invalid JSON: ")
        raise Refusal(400, "not_json", f"the line is not valid JSON: {why}")
    misplaced = {str(mistake["loc"][0]) for mistake in mistakes if mistake["type"] == "extra_forbidden"}
    if misplaced & OPTION_NAMES:
        names = ", ".join(sorted(misplaced & OPTION_NAMES))
        raise Refusal(
            422, "options_fixed", f"{names}: the options of a stream are set at its start and hold to its end"
        )
    raise invalid(mistakes)


def _is_end(data: bytes | str) -> bool:
    """`{"end": true}`: no more lines come, though the connection stays open for the answers."""
    if not data or len(data) > _LONGEST_END:
        return False
    try:
        return from_json(data) == {"end": True}
    except ValueError:
        return False


def end_now(waiting: asyncio.Timeout) -> None:
    """Let a wait that has no end, or a later one, end now with TimeoutError."""
    if not waiting.expired():
        waiting.reschedule(asyncio.get_running_loop().time())


def shutting_down() -> NotReady:
    return NotReady("the server is shutting down; come back and go on with the next line")


def _first(group: BaseExceptionGroup[ClientDisconnect]) -> ClientDisconnect:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ClientDisconnect)
    return error
