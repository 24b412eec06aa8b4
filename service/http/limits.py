"""Rate limits in queries, counted by the library `limits` with sliding window counters.

In memory, or in Redis where one is set, so that all API processes count together. A Redis that fails never
fails a request: for `REDIS_PAUSE_S` this process counts in its memory, then it asks Redis again.

Names come from clients, so what is remembered of them is bounded: `MOST_NAMES` a limit and process, with two
counters each. Beyond, the oldest is forgotten. Whoever makes up stream names to get there
gains nothing that the made-up names do not give already; what holds against that is the limit by key.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from service.errors import TooLarge
from service.http.errors import Refusal
from service.metrics import Metrics, RateLimitBy
from service.redis.connection import GONE, connect_async
from service.redis.keys import Keys
from service.settings import Settings, rate_limit

MOST_NAMES = 20_000
REDIS_TIMEOUT_S = 0.25
REDIS_PAUSE_S = 2.0

Storage = MemoryStorage | RedisStorage
Result = TypeVar("Result")

log = structlog.get_logger("attune.limits")


class RateLimited(Refusal):
    """Too many queries; nothing was counted or changed."""

    def __init__(self, by: RateLimitBy, limit: str, retry_after_s: float):
        whose = "this stream" if by == "stream" else "your key or address"
        super().__init__(
            429,
            "rate_limited",
            f"{whose} has used up the limit of {limit}, in queries; come back in {retry_after_s:.1f} s",
            details={"by": by, "limit": limit, "retry_after_s": round(retry_after_s, 3)},
        )
        self.by = by
        self.retry_after_s = retry_after_s


class Limits:
    """The limits of one server; where none is set, nothing is counted."""

    def __init__(self, settings: Settings):
        self._redis = None if settings.redis_url is None else SharedCounters(settings)
        texts: dict[RateLimitBy, str | None] = {
            "key": settings.rate_limit_per_key,
            "stream": settings.rate_limit_per_stream,
        }
        self._limits = [
            _Limit(by, rate_limit(text), text, self._redis) for by, text in texts.items() if text is not None
        ]

    async def charge(self, *, caller: str, stream: str | None, queries: int, metrics: Metrics) -> None:
        """Count `queries` queries against every limit, or against none. stream: None: they belong to none.

        Raises:
            RateLimited: too many just now; says in how many seconds they would pass.
            TooLarge: more at once than a limit ever lets through.
        """
        names: dict[RateLimitBy, str | None] = {"key": caller, "stream": stream}
        counted = [(limit, name) for limit in self._limits if (name := names[limit.by]) is not None]
        for limit, _ in counted:
            limit.refuse_too_many_at_once(queries)
        try:
            # Asked before anything is counted, so that a refusal by the second costs nothing in the first.
            for limit, name in counted[1:]:
                await limit.check(name, queries)
            for limit, name in counted:
                await limit.charge(name, queries)
        except RateLimited as refusal:
            metrics.count_rate_limited(refusal.by)
            raise

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.close()


class _Limit:
    """One limit over all names of one kind."""

    def __init__(self, by: RateLimitBy, item: RateLimitItem, text: str, redis: SharedCounters | None):
        self.by = by
        self._item = item
        self._text = text
        self._redis = redis
        self._memory = BoundedMemory(2 * MOST_NAMES)  # a name has the present window and the one before
        self._names = RecentNames(MOST_NAMES, lifetime_s=2 * item.get_expiry())

    def refuse_too_many_at_once(self, queries: int) -> None:
        if queries > self._item.amount:
            raise TooLarge(
                f"the request has {queries} queries; the rate limit of {self._text} never lets so many pass",
                details={"max_queries": self._item.amount, "by": self.by, "limit": self._text},
            )

    async def check(self, name: str, queries: int) -> None:
        """Raises RateLimited if `charge` would. Counts nothing."""

        async def test(storage: Storage) -> bool:
            return await SlidingWindowCounterRateLimiter(storage).test(
                self._item, self.by, name, cost=queries
            )

        if not await self._with_storage(test):
            raise await self._refusal(name, queries)

    async def charge(self, name: str, queries: int) -> None:
        """Raises RateLimited, and then has counted nothing."""

        async def hit(storage: Storage) -> bool:
            return await SlidingWindowCounterRateLimiter(storage).hit(self._item, self.by, name, cost=queries)

        if not await self._with_storage(hit):
            raise await self._refusal(name, queries)
        if self._redis is not None:
            for forgotten in self._names.touch(name, time.monotonic()):
                await self._redis.forget(self._item.key_for(self.by, forgotten), self._item.get_expiry())

    async def _refusal(self, name: str, queries: int) -> RateLimited:
        async def window(storage: Storage) -> tuple[int, float, int, float]:
            return await storage.get_sliding_window(
                self._item.key_for(self.by, name), self._item.get_expiry()
            )

        seconds = seconds_until_room(
            await self._with_storage(window), self._item.amount - queries, self._item.get_expiry()
        )
        return RateLimited(self.by, self._text, seconds)

    async def _with_storage(self, question: Callable[[Storage], Awaitable[Result]]) -> Result:
        if self._redis is not None and self._redis.usable:
            try:
                answer = await question(self._redis.storage)
            except GONE as error:
                self._redis.pause(error)
            else:
                self._redis.works()
                return answer
        return await question(self._memory)


def seconds_until_room(window: tuple[int, float, int, float], room: int, expiry_s: float) -> float:
    """Seconds until `previous * fading + current <= room`, if nothing else is counted meanwhile.

    window  (previous count, its seconds left, current count, its seconds left as current and as previous)
    room    what may be counted already for the request to pass, at least 0
    """
    previous, previous_left_s, current, current_left_s = window
    if current <= room:
        # The library rounds the weighted count down, hence + 1.
        return max(0.0, previous_left_s - (room + 1 - current) * expiry_s / max(previous, 1))
    becomes_previous_s = max(0.0, current_left_s - expiry_s)
    return becomes_previous_s + max(0.0, expiry_s - (room + 1) * expiry_s / current)


class BoundedMemory(MemoryStorage):
    """The library's memory with a bound on its counters, for windows of one length.

    The library looks through all counters at each hit to find the expired ones, and has no bound. With
    windows of one length the counters expire in the order in which they began, so the first are the ones to
    look at, and to drop.
    """

    def __init__(self, most: int):
        super().__init__()
        self._most = most

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        now = time.time()
        if self.expirations.get(key, 0.0) <= now:
            self._drop(key)
            self._make_room(now)
            self.expirations[key] = now + expiry
        self.storage[key] += amount
        return self.storage[key]

    def _make_room(self, now: float) -> None:
        while self.expirations:
            first = next(iter(self.expirations))
            if self.expirations[first] > now and len(self.expirations) < self._most:
                return
            self._drop(first)

    def _drop(self, key: str) -> None:
        self.expirations.pop(key, None)
        self.storage.pop(key, None)


class RecentNames:
    """The names that this process counted lately."""

    def __init__(self, most: int, lifetime_s: float):
        self._most = most
        self._lifetime_s = lifetime_s
        self._seen_s: OrderedDict[str, float] = OrderedDict()

    def touch(self, name: str, now_s: float) -> list[str]:
        """Remember `name`; returns the names that have to be forgotten for it, not those that ran out."""
        self._seen_s[name] = now_s
        self._seen_s.move_to_end(name)
        while next(iter(self._seen_s.values())) < now_s - self._lifetime_s:
            self._seen_s.popitem(last=False)
        surplus = len(self._seen_s) - self._most
        return [self._seen_s.popitem(last=False)[0] for _ in range(surplus)]


class SharedCounters:
    """Counters in Redis, and whether it makes sense to ask for them just now."""

    def __init__(self, settings: Settings):
        assert settings.redis_url is not None
        url = settings.redis_url.get_secret_value()
        self._client = connect_async(url, timeout_s=REDIS_TIMEOUT_S)
        self.storage = RedisStorage(
            url.replace("unix://", "redis+unix://", 1) if url.startswith("unix://") else url,
            implementation="redispy",
            key_prefix=f"{Keys(settings.redis_namespace).prefix}limits",
            connection_pool=self._client.connection_pool,  # type: ignore[arg-type]  # documented, not typed
        )
        self._paused_until_s = 0.0
        self._down = False

    @property
    def usable(self) -> bool:
        return time.monotonic() >= self._paused_until_s

    def pause(self, error: Exception) -> None:
        """Redis failed; ask it no more for a while."""
        self._paused_until_s = time.monotonic() + REDIS_PAUSE_S
        if not self._down:
            log.warning("rate limits are counted in memory: Redis failed", error=type(error).__name__)
        self._down = True

    def works(self) -> None:
        if self._down:
            log.info("rate limits are counted in Redis again")
        self._down = False

    async def forget(self, key: str, expiry_s: int) -> None:
        if not self.usable:
            return
        try:
            await self.storage.clear_sliding_window(key, expiry_s)
        except GONE as error:
            self.pause(error)

    async def close(self) -> None:
        await self._client.aclose()
