"""One process's part in a deployment on Redis: what its role needs, put together and taken apart again."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
import structlog

from service.errors import NotReady, QueueUnreachable
from service.messages import QueryJob
from service.metrics import Metrics
from service.redis.catalogue import RedisCatalogue, packed
from service.redis.connection import GONE, Clock, Scripts, connect, connect_async, end, shown
from service.redis.keys import Keys
from service.redis.submitter import RedisSubmitter
from service.settings import Settings

if TYPE_CHECKING:
    from encoders.base import Encoder
    from service.backend import Backend
    from service.redis.leases import Leases
    from service.redis.queue import RedisQueue
    from service.tasks import Classifier

log = structlog.get_logger(__name__)

_HELLO_S = 1.0
_RETRY_S = 0.25
_FIRST_HELLO_S = 30.0
_LOCK_S = 120.0
_LONGEST_WAIT_S = 2.0
"""For bells and results, in one command."""


class Deployment:
    """Make it with `open`; `start_backend` adds a worker (it blocks); `close` leaves."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        assert settings.redis_url is not None
        self._settings = settings
        self._metrics = metrics
        self._url = settings.redis_url.get_secret_value()
        self._timeout_s = settings.redis_timeout_s
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}".replace(":", "-")
        self._keys = Keys(settings.redis_namespace)
        self._clock = Clock()
        self._client = connect_async(self._url, timeout_s=self._timeout_s)
        self._reader = connect_async(self._url, timeout_s=self._timeout_s + _LONGEST_WAIT_S)
        self._blocking: list[redis.Redis] = []
        self._scripts = Scripts(self._client)
        self._hello_task: asyncio.Task[None] | None = None
        self._workers = 0
        self._backend: Backend | None = None
        self._queue: RedisQueue | None = None
        self._leases: Leases | None = None
        self.catalogue = RedisCatalogue(self._client, self._keys)
        self.submitter = RedisSubmitter(
            client=self._client,
            reader=self._reader,
            keys=self._keys,
            api=self._name,
            clock=self._clock,
            capacity_items=settings.queue_capacity_items,
            max_job_bytes=settings.max_job_mib << 20,
            timeout_s=self._timeout_s,
        )

    @classmethod
    async def open(cls, settings: Settings, *, metrics: Metrics) -> Deployment:
        """Connect. Raises QueueUnreachable if Redis does not answer for half a minute."""
        deployment = cls(settings, metrics)
        until = asyncio.get_running_loop().time() + _FIRST_HELLO_S
        while not await deployment._hello():
            if asyncio.get_running_loop().time() > until:
                await deployment.close()
                raise QueueUnreachable(f"no Redis at {shown(deployment._url)}")
            await asyncio.sleep(_RETRY_S)
        metrics.watch_workers(lambda: deployment._workers)
        deployment.submitter.start()
        deployment._hello_task = asyncio.ensure_future(deployment._keep_saying_hello())
        return deployment

    def start_backend(self, encoder: Encoder | None, classifier: Classifier | None = None) -> Backend:
        """Load model and galleries, join the workers. Blocks. Raises NotReady, EncoderError, OSError."""
        from service.backend import Backend
        from service.redis.leases import Leases
        from service.redis.queue import Limits, RedisQueue
        from service.redis.states import RedisStates

        settings = self._settings
        client = self._connect()
        leases = Leases(
            self._connect(),
            self._keys,
            worker=self._name,
            lease_s=settings.lease_s,
            clock=self._clock,
        )
        queue = RedisQueue(
            client=client,
            reader=self._connect(longer_s=_LONGEST_WAIT_S),
            keys=self._keys,
            leases=leases,
            clock=self._clock,
            limits=Limits(
                capacity_items=settings.queue_capacity_items,
                prefetch_items=settings.prefetch_items,
                max_attempts=settings.max_attempts,
                stream_ttl_s=int(settings.stream_ttl_days * 86_400),
            ),
            metrics=self._metrics,
        )

        def alone(name: str) -> AbstractContextManager[Any]:
            return client.lock(self._keys.lock(name), timeout=_LOCK_S, blocking_timeout=_LOCK_S)

        backend = Backend(
            settings,
            metrics=self._metrics,
            encoder=encoder,
            classifier=classifier,
            queue=queue,
            states=RedisStates(client, self._keys, leases, self._clock),
            alone=alone,
        )
        self._introduce(client, backend)
        backend.start()
        queue.start()
        self._metrics.watch_leases(lambda: len(leases.held()))
        self._backend, self._queue, self._leases = backend, queue, leases
        return backend

    def _connect(self, *, longer_s: float = 0.0) -> redis.Redis:
        """A client for one thread of the worker, closed with the deployment."""
        client = connect(self._url, timeout_s=self._timeout_s + longer_s)
        self._blocking.append(client)
        return client

    def _introduce(self, client: redis.Redis, backend: Backend) -> None:
        """Tell the others which encoder and galleries there are. Raises NotReady beside another encoder."""
        card = backend.card()
        known: Any = client.get(self._keys.encoder)
        if known is not None and self._workers and _models(json.loads(known)) != _models(asdict(card)):
            raise NotReady(
                "the workers of this deployment serve another encoder or classifier; stop them first, or set "
                "another ATTUNE_REDIS_NAMESPACE"
            )
        client.set(self._keys.encoder, packed(card))
        # Asked before the list is made: what another worker makes in between is not taken for gone.
        known_galleries: Any = client.hkeys(self._keys.galleries)
        described = {gallery["name"]: gallery for gallery in backend.galleries.list()}
        stale = {name.decode() for name in known_galleries} - set(described)
        # Here too: until the first hello Redis may be gone, and the source model answers all the same.
        self.catalogue.update(packed(card).encode(), described)
        for name, gallery in described.items():
            if self._workers:  # the others keep the cards of what they change
                client.hsetnx(self._keys.galleries, name, json.dumps(gallery))
            else:
                client.hset(self._keys.galleries, name, json.dumps(gallery))
        if stale:
            client.hdel(self._keys.galleries, *stale)

    async def close(self) -> None:
        """The backend has been stopped by now: what it owns is given back."""
        if self._hello_task is not None:
            await end([self._hello_task])
        await self.submitter.close()
        if self._leases is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._leases.stop)
        for client in self._blocking:
            client.close()
        await self._client.aclose()
        await self._reader.aclose()

    # -- what the engine may know -------------------------------------------------------------------

    @property
    def why_not_ready(self) -> str:
        """Empty when queries are answered, if only by the source model."""
        if not self.catalogue.known:
            return "no worker has started yet"
        if not self.submitter.up and self._backend is None:
            return "Redis does not answer"
        return ""

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {
            "up": self.submitter.up,
            "workers": self._workers,
            "namespace": self._settings.redis_namespace,
        }
        if self._leases is not None:
            described["partitions"] = len(self._leases.held())
        return described

    async def ask_locally(self, jobs: Sequence[QueryJob], *, timeout_s: float) -> list[Any]:
        """Answers of this process's own worker, past Redis."""
        assert self._queue is not None
        return await self._queue.local.ask(jobs, timeout_s=timeout_s)

    # -- hello --------------------------------------------------------------------------------------

    async def _keep_saying_hello(self) -> None:
        while True:
            if not await self._hello():
                await asyncio.sleep(_RETRY_S)
                continue
            with suppress(TimeoutError):  # a connection that broke is soon made again
                async with asyncio.timeout(_HELLO_S):
                    await self.submitter.went_down.wait()

    async def _hello(self) -> bool:
        """Whether Redis answers; and the news that it has."""
        keys = self._keys
        try:
            now_ms, waiting, workers, encoder, *galleries = await self._scripts.hello(
                keys=[keys.apis, keys.waiting, keys.workers, keys.encoder, keys.galleries],
                args=[self._name, int(2000 * self._settings.lease_s)],
            )
        except GONE as error:
            if self.submitter.up:
                log.warning("redis_gone", why=str(error)[:200])
            self.submitter.up = False
            self._metrics.set_redis_up(False)
            self._metrics.count_redis_error()
            return False
        self._clock.set(now_ms)
        self._workers = workers
        self.submitter.waiting = waiting
        cards = {
            name.decode(): json.loads(card)
            for name, card in zip(galleries[::2], galleries[1::2], strict=True)
        }
        self.catalogue.update(encoder, cards)
        if not self.submitter.up:
            log.info("redis_there", api=self._name)
        self.submitter.up = True
        self.submitter.went_down.clear()
        self._metrics.set_redis_up(True)
        return True


def _models(card: Mapping[str, Any]) -> tuple[str, str | None]:
    """Fingerprints of encoder and classifier."""
    classifier = card.get("classifier")
    return card["fingerprint"], None if classifier is None else classifier["fingerprint"]
