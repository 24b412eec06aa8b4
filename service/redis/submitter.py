"""The routes' end of the query stream: jobs go into Redis, results come back to this process's own stream."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import redis.asyncio
import structlog

from service.codec import pack_job, unpack_reply
from service.errors import DeadlineExceeded, NotReady, QueueFull, QueueUnreachable, TooLarge
from service.messages import Job, home_of
from service.redis.connection import GONE, Clock, Scripts, end, is_full
from service.redis.keys import GROUP, WITHDRAWN_TTL_S, Keys, partition_of

log = structlog.get_logger(__name__)

_READ_COUNT = 64
_READ_BLOCK_MS = 1000
_MOST_READ = 64
_MOST_READ_BYTES = 1 << 20
"""Results that were read are deleted once so many have gathered, or nothing comes: not each by itself."""
_RETRY_S = 0.25
_RATE_SMOOTHING = 0.2
_LONGEST_RETRY_S = 60.0


class RedisSubmitter:
    """`start` and `close` belong to the event loop on which `ask` is called."""

    def __init__(
        self,
        *,
        client: redis.asyncio.Redis,
        reader: redis.asyncio.Redis,
        keys: Keys,
        api: str,
        clock: Clock,
        capacity_items: int,
        max_job_bytes: int,
        timeout_s: float,
    ) -> None:
        """`reader` is a client of its own with a longer timeout, because it waits for results."""
        self.up = False
        """Whether Redis answered last time."""
        self.went_down = asyncio.Event()
        """Set when it does not, until somebody has found that it does again."""
        self.waiting = 0
        """Items waiting in Redis, as of the last news."""
        self._client = client
        self._reader = reader
        self._scripts = Scripts(client)
        self._keys = keys
        self._api = api
        self._clock = clock
        self._capacity = capacity_items
        self._max_job_bytes = max_job_bytes
        self._timeout_s = timeout_s
        self._pending: dict[str, asyncio.Future[bytes]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._rate = 0.0  # answers per second, smoothed
        self._answered_at = time.monotonic()
        self._closed = False

    def start(self) -> None:
        self._spawn(self._read_results())

    async def close(self) -> None:
        self._closed = True
        for future in self._pending.values():
            if not future.done():
                future.set_exception(NotReady("shutting down"))
        await end(self._tasks)
        with contextlib.suppress(*GONE):
            await self._client.delete(self._keys.results(self._api))
            await self._client.zrem(self._keys.apis, self._api)

    def depth(self) -> int:
        return self.waiting

    def waiting_by_stream(self) -> dict[str, int] | None:
        """Workers hold what they have read ahead, and a queue in Redis is read by its owner only."""
        return None

    async def ask(self, jobs: Sequence[Job], *, timeout_s: float) -> list[Any]:
        if self._closed:
            raise NotReady("shutting down")
        if not self.up:
            raise QueueUnreachable("Redis does not answer; try again")
        loop = asyncio.get_running_loop()
        payloads = [self._packed(job) for job in jobs]
        futures = {job.id: loop.create_future() for job in jobs}
        self._pending |= futures  # before they are put: an answer may be quick
        entries: list[bytes] = []
        try:
            async with asyncio.timeout(timeout_s):
                entries = await self._put(jobs, payloads)
                replies = await asyncio.gather(*futures.values())
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout_s:.1f} s") from None
        finally:
            for job in jobs:
                self._pending.pop(job.id, None)
            left = [
                (job, entry)
                for job, entry in zip(jobs, entries, strict=False)
                if not futures[job.id].done() or futures[job.id].cancelled()
            ]
            if left:
                self._spawn(self._withdraw(left))
        return [unpack_reply(reply) for reply in replies]

    def _packed(self, job: Job) -> bytes:
        payload = pack_job(job, reply_to=self._api, shift_s=self._clock.shift_s)
        if len(payload) > self._max_job_bytes:
            raise TooLarge(
                f"the queries of one batch take {len(payload)} bytes; at most {self._max_job_bytes} travel",
                details={"max_bytes": self._max_job_bytes},
            )
        return payload

    async def _put(self, jobs: Sequence[Job], payloads: Sequence[bytes]) -> list[bytes]:
        """Entries of the jobs; or nothing was admitted, and nothing will be."""
        names = [partition_of(home_of(job)) for job in jobs]
        latest_ms = (time.monotonic() + self._timeout_s + self._clock.shift_s) * 1e3
        keys = [key for p in names for key in (self._keys.queue(p), self._keys.bell(p))]
        pairs = [value for job, payload in zip(jobs, payloads, strict=True) for value in (job.items, payload)]
        # Shielded: a put under way is finished, so that it is known what there is to withdraw.
        put = asyncio.ensure_future(
            self._scripts.put(
                keys=[self._keys.waiting, *keys], args=[self._capacity, f"{latest_ms:.0f}", *pairs]
            )
        )
        try:
            status, *reply = await asyncio.shield(put)
        except asyncio.CancelledError:
            put.add_done_callback(lambda done: self._withdraw_late(jobs, done))
            raise
        except GONE as error:
            if is_full(error):
                raise QueueFull(
                    "the memory of Redis is full", retry_after_s=self._retry_after_s(), details={}
                ) from error
            self._mark_down(error)
            raise QueueUnreachable("Redis does not answer; try again") from error
        if status == b"late":
            raise QueueUnreachable("Redis answered too late; try again")
        if status == b"full":
            self.waiting = reply[0]
            asked = sum(job.items for job in jobs)
            raise QueueFull(
                f"the queue holds {reply[0]} of {self._capacity} items; {asked} more do not fit",
                retry_after_s=self._retry_after_s(),
                details={"depth": reply[0], "capacity": self._capacity, "asked": asked},
            )
        return reply

    def _retry_after_s(self) -> float:
        if self._rate <= 0:
            return 1.0
        return math.ceil(min(max(1.0, self.waiting / self._rate), _LONGEST_RETRY_S))

    # -- leaving ------------------------------------------------------------------------------------

    def _withdraw_late(self, jobs: Sequence[Job], put: asyncio.Future[Any]) -> None:
        """The client left while its jobs were on their way in."""
        if put.cancelled() or put.exception() is not None or self._closed:
            return
        status, *entries = put.result()
        if status == b"ok":
            self._spawn(self._withdraw(list(zip(jobs, entries, strict=True))))

    async def _withdraw(self, left: Sequence[tuple[Job, bytes]]) -> None:
        for job, entry in left:
            p = partition_of(home_of(job))
            with contextlib.suppress(*GONE):  # then it is answered to nobody
                await self._scripts.withdraw(
                    keys=[
                        self._keys.waiting,
                        self._keys.queue(p),
                        self._keys.withdrawn(p),
                        self._keys.attempts(p),
                    ],
                    args=[entry, job.items, GROUP, WITHDRAWN_TTL_S],
                )

    # -- results ------------------------------------------------------------------------------------

    async def _read_results(self) -> None:
        key = self._keys.results(self._api)
        last: bytes | str = "0-0"
        read: list[bytes] = []
        read_bytes = 0
        while True:
            try:
                reply: Any = await self._reader.xread({key: last}, count=_READ_COUNT, block=_READ_BLOCK_MS)
            except GONE as error:
                self._mark_down(error)
                await asyncio.sleep(_RETRY_S)
                continue
            entries = _entries(reply)
            for entry, fields in entries:
                last = entry
                read.append(entry)
                read_bytes += len(fields[b"reply"])
                self._hand_out(fields)
            if len(read) >= _MOST_READ or read_bytes >= _MOST_READ_BYTES or (read and not entries):
                self._spawn(self._forget(key, read))
                read, read_bytes = [], 0

    def _hand_out(self, fields: dict[bytes, bytes]) -> None:
        future = self._pending.pop(fields[b"job"].decode(), None)
        if future is None or future.done():
            return  # answered before, or its client left
        future.set_result(fields[b"reply"])
        now = time.monotonic()
        self._rate += _RATE_SMOOTHING * (1 / max(now - self._answered_at, 1e-3) - self._rate)
        self._answered_at = now

    async def _forget(self, key: str, entries: Sequence[bytes]) -> None:
        with contextlib.suppress(*GONE):  # they expire
            await self._client.xdel(key, *entries)

    # -- state of the connection --------------------------------------------------------------------

    def _mark_down(self, error: BaseException) -> None:
        if self.up:
            log.warning("redis_gone", why=str(error)[:200])
        self.up = False
        self.went_down.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _entries(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of one stream, in either of the client's shapes."""
    if not reply:
        return []
    if isinstance(reply, dict):
        (value,) = reply.values()
        return list(value[0]) if value and isinstance(value[0], list) else list(value)
    return list(reply[0][1])
