"""A real Redis for the tests of this folder, and engines that share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from benchmarks.redis_server import RedisServer, redis_server
from service.redis.keys import Keys
from service.settings import Settings


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def namespace(server: RedisServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix of the test's own; its keys are deleted afterwards, and no others."""
    name = f"test-{abs(hash(request.node.nodeid)):x}"
    yield name
    with server.client() as client:
        for key in client.scan_iter(f"{name}:*", count=1000):
            client.delete(key)


@pytest.fixture
def keys(namespace: str) -> Keys:
    return Keys(namespace)


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as connected:
        yield connected


@pytest.fixture
def redis_settings(
    settings: Callable[..., Settings], server: RedisServer, namespace: str
) -> Callable[..., Settings]:
    """Settings of a small engine on the shared Redis."""

    def make(**changes: Any) -> Settings:
        return settings(
            **{"redis_url": server.url, "redis_namespace": namespace, "lease_s": 1.0, "redis_timeout_s": 1.0}
            | changes
        )

    return make
