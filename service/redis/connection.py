"""Clients, scripts, and the clock that all processes share: Redis' own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

GONE = (RedisError, OSError)
"""What a command raises when Redis is not there, not itself or out of memory: nothing is certain then."""

_EVEN_WHEN_FULL = "redis.call('UNLINK', KEYS[1] .. '/none')\n"
"""Put before all scripts but `put`. Redis refuses what needs memory when it has none left, except in a script
that has written before, if only a delete of nothing. So a full Redis takes no new jobs, and is emptied."""

SCRIPTS = ("acquire", "beat", "begin", "claim", "hello", "put", "read", "release", "settle", "withdraw")


def connect(url: str, *, timeout_s: float) -> redis.Redis:
    """A client that never repeats a command: whether a write happened is found out by reading again."""
    return redis.Redis.from_url(url, **_options(timeout_s), retry=Retry(NoBackoff(), 0))


def connect_async(url: str, *, timeout_s: float) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(url, **_options(timeout_s), retry=AsyncRetry(NoBackoff(), 0))


def shown(url: str) -> str:
    """A Redis address for logs and terminals: without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_full(error: BaseException) -> bool:
    """Whether Redis refused a write because its memory is full."""
    return "command not allowed when used memory" in str(error)


def _options(timeout_s: float) -> dict[str, Any]:
    return {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "decode_responses": False}


class Scripts:
    """The Lua scripts beside this file, called by name: `scripts.put(keys=..., args=...)`."""

    def __init__(self, client: redis.Redis | redis.asyncio.Redis, names: Sequence[str] = SCRIPTS) -> None:
        folder = files("service.redis") / "scripts"
        self._scripts = {
            name: client.register_script(
                ("" if name == "put" else _EVEN_WHEN_FULL) + (folder / f"{name}.lua").read_text("utf-8")
            )
            for name in names
        }

    def __getattr__(self, name: str) -> Any:
        return self._scripts[name]


async def end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough: a cancellation that meets the client's own time limit comes out as that limit's error.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.1)


class Clock:
    """Redis' time by this process's monotonic clock, so that clocks of several machines need not agree."""

    def __init__(self) -> None:
        self.shift_s = time.time() - time.monotonic()
        """Add it to time.monotonic()."""

    def set(self, redis_ms: float) -> None:
        self.shift_s = redis_ms / 1e3 - time.monotonic()
