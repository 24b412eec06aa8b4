"""Clients, scripts, and the clock that all processes share: Redis' own."""

from __future__ import annotations

import time
from collections.abc import Sequence
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


def _options(timeout_s: float) -> dict[str, Any]:
    return {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "decode_responses": False}


class Scripts:
    """The Lua scripts beside this file, called by name: `scripts.put(keys=..., args=...)`."""

    def __init__(self, client: redis.Redis | redis.asyncio.Redis, names: Sequence[str] = SCRIPTS) -> None:
        folder = files("service.redis") / "scripts"
        self._scripts = {
            name: client.register_script((folder / f"{name}.lua").read_text("utf-8")) for name in names
        }

    def __getattr__(self, name: str) -> Any:
        return self._scripts[name]


class Clock:
    """Redis' time by this process's monotonic clock, so that clocks of several machines need not agree."""

    def __init__(self) -> None:
        self.shift_s = time.time() - time.monotonic()
        """Add it to time.monotonic()."""

    def set(self, redis_ms: float) -> None:
        self.shift_s = redis_ms / 1e3 - time.monotonic()
