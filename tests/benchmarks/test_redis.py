"""The benchmark of Redis measures what it says, on a few jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.redis import SPREADS, compare_commits, compare_queues, parser, stream_names
from benchmarks.redis_server import RedisServer, redis_server
from service.redis.keys import partition_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def test_streams_are_spread_as_asked() -> None:
    one, together, apart = (stream_names(spread, 8) for spread in SPREADS)
    assert len(set(one)) == 1
    assert (len(set(together)), len(set(map(partition_of, together)))) == (8, 1)
    assert len(set(map(partition_of, apart))) == 8


async def test_every_way_of_the_query_stream_answers_every_job(server: RedisServer) -> None:
    rows = await compare_queues(server.url, jobs=8, payloads=[1])
    assert [(row["clients"], row["streams"]) for row in rows] == [
        (1, "many partitions"), (32, "one stream"), (32, "one partition"), (32, "many partitions"),
    ]  # fmt: skip
    for row in rows:
        assert row["jobs"] == 8
        assert all(row[name]["jobs_per_s"] > 0 for name in ("memory", "together", "apart"))
        assert row["apart"]["added_p50_ms"] == row["apart"]["p50_ms"] - row["memory"]["p50_ms"]
    with server.client() as client:
        assert {client.get(f"{name}:1:waiting") for name in ("together", "apart")} == {b"0"}


async def test_commits_write_states_of_the_size_asked_for(server: RedisServer) -> None:
    (row,) = await compare_commits(server.url, commits=2, sizes_mb=[0.25])
    assert (row["state_mb"], row["commits"]) == (0.25, 2)
    assert row["with_over_without"] == row["settle_with_ms"] / row["settle_without_ms"]
    with server.client() as client:
        assert client.hstrlen("commit:1:stream:stream", "state") == 250_000


def test_a_payload_that_is_not_offered_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--payloads", "7"])
    assert "invalid choice" in capsys.readouterr().err
