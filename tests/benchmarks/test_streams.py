"""The benchmark of many streams measures what it says, on a dozen of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from benchmarks.redis_server import RedisServer, redis_server
from benchmarks.stream_memory import full_state, layer_norms, weigh
from benchmarks.streams import Run
from service.messages import Query

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.mark.parametrize("with_redis", [False, True])
async def test_every_phase_reaches_the_streams_it_is_about(
    with_redis: bool, server: RedisServer, tmp_path: Path
) -> None:
    found = await Run(12, 8, tmp_path, server.url if with_redis else None).measure()
    assert (found["streams"], found["with_redis"]) == (12, with_redis)
    assert found["list"]["streams"] == 13  # with the one that was alone
    assert found["state_bytes_a_stream"] > 0
    assert (found["max_streams"], found["streams_in_memory"]) == (6, 6)
    assert found["evictions"] >= 6  # 5 pinned, 7 others, room for one of them
    assert found["pinned_that_left"] == []
    assert found["query_that_loads_its_stream"]["p50_ms"] > 0
    assert ("redis_bytes_a_stream" in found) == with_redis


def test_a_full_state_is_as_large_as_its_parts() -> None:
    """CLIP's image tower: 26 layer norms of 768. State: three times the parameters, a step count a
    parameter, and 64 entries of two vectors of 512 and two numbers, all of 4 bytes."""
    parameters = layer_norms(26, 768)
    assert sum(value.numel() for value in parameters.values()) == 39_936
    expected = 4 * (3 * 39_936 + 52 + 64 * (2 * 512 + 2))
    assert full_state(parameters, 512).byte_size() == expected


def test_a_last_good_state_weighs_as_much_again(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        row = weigh(client, "small", layer_norms(2, 64), 32, Query(text="x" * 1000))
    assert row["state_bytes"] < row["packed_bytes"] < row["redis_bytes"]
    assert row["redis_bytes_with_good"] > row["redis_bytes"] + row["state_bytes"]
    assert 1000 < row["gathered_query_bytes"] < 2000
