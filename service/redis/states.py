"""Stream states in Redis, as their owner reads them. The queue writes them, together with the results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
import structlog

from service.codec import BadMessage, unpack_job
from service.errors import QueueUnreachable
from service.messages import QueryJob
from service.redis.connection import GONE, Clock
from service.redis.keys import Keys, partition_of
from service.redis.leases import Leases

log = structlog.get_logger(__name__)

_REFUSED_TTL_S = 7 * 86_400


class RedisStates:
    deferred = True

    def __init__(self, client: redis.Redis, keys: Keys, leases: Leases, clock: Clock) -> None:
        self._client = client
        self._keys = keys
        self._leases = leases
        self._clock = clock

    def owner_token(self, stream: str) -> int | None:
        return self._leases.token(stream)

    def names(self) -> list[str]:
        return [name.decode() for name in self._ask("zrange", self._keys.streams, 0, -1)]

    def latest(self, most: int) -> list[str]:
        return [name.decode() for name in self._ask("zrevrange", self._keys.streams, 0, most - 1)]

    def load(self, name: str) -> bytes | None:
        data: bytes | None = self._ask("hget", self._keys.stream(name), "state")
        return data

    def cards(self, names: Sequence[str]) -> list[dict[str, Any] | None]:
        with self._client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(self._keys.stream(name), "card")
            cards = self._checked(pipe.execute)
        return [None if card is None else json.loads(card) for card in cards]

    def gathered(self, name: str) -> Mapping[str, Sequence[QueryJob]]:
        of_stream = f"[{name}/", f"({name}0"  # "0" follows "/": a partition may hold thousands of others
        members = self._ask("zrangebylex", self._keys.gatherings(partition_of(name)), *of_stream)
        tracks = [member.decode().partition("/")[2] for member in members]
        return {track: self._jobs(self._keys.gathering(name, track)) for track in tracks}

    def _jobs(self, key: str) -> list[QueryJob]:
        jobs: list[QueryJob] = []
        for data in self._ask("lrange", key, 0, -1):
            try:
                job = unpack_job(data).job(shift_s=self._clock.shift_s)
            except BadMessage as error:
                log.exception("gathered_job_unreadable", key=key, why=str(error))
                continue
            if isinstance(job, QueryJob):
                jobs.append(job)
        return jobs

    def save(self, name: str, data: bytes) -> None:
        raise NotImplementedError("states leave with the settlement of their jobs")

    def delete(self, name: str) -> None:
        raise NotImplementedError("states leave with the settlement of their jobs")

    def set_aside(self, name: str) -> str:
        key = self._keys.stream(name)
        aside = f"{key}/refused"  # no stream name holds a slash
        self._ask("copy", key, aside)  # the next write replaces the original; until then nothing is lost
        self._ask("expire", aside, _REFUSED_TTL_S)
        return aside

    def _ask(self, command: str, *arguments: Any) -> Any:
        return self._checked(getattr(self._client, command), *arguments)

    def _checked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except GONE as error:
            self._leases.in_doubt()
            raise QueueUnreachable(f"Redis does not answer: {error}") from error
