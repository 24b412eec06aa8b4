"""History, comparison and events where states and queries are in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmarks.redis_server import RedisServer, redis_server
from service.engine import Engine, running_engine
from service.http.app import create_app
from service.redis.keys import Keys
from service.redis.queue import RedisQueue
from service.settings import Settings
from tests.service.conftest import TOY, fill
from tests.service.http.test_events import Listening
from tests.service.test_comparison import (  # noqa: F401
    test_a_snapshot_is_compared_with_the_stream_and_with_another,
)
from tests.service.test_engine import ask, pictures, settled_version
from tests.service.test_history import (  # noqa: F401
    history_of,
    test_a_reset_drops_it_and_a_restored_snapshot_brings_its_own,
    test_answers_that_learn_nothing_leave_no_trace,
    test_every_batch_of_a_track_is_in_its_history,
)
from tests.toy import ToyEncoder

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path: Path, server: RedisServer, namespace: str) -> Callable[..., Settings]:
    where = {"data_folder": tmp_path / "data", "redis_url": server.url, "redis_namespace": namespace}

    def make(**changes: Any) -> Settings:
        return Settings(
            **{**TOY, **where, "lease_s": 1.0, "redis_timeout_s": 1.0, "events_interval_s": 0.05, **changes}
        )

    return make


@pytest.fixture
async def engine(settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    async with running_engine(settings(), encoder=ToyEncoder()) as running:
        await fill(running)
        yield running


async def test_the_next_owner_of_a_stream_goes_on_with_its_history(
    settings: Callable[..., Settings], client: redis.Redis, keys: Keys
) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as first:
        await fill(first)
        await ask(first, pictures(16), adapt="sync", stream="s")
        await settled_version(first, "s", 1)
        before = await history_of(first)
    async with running_engine(settings(), encoder=ToyEncoder()) as second:
        assert await history_of(second) == before
        await ask(second, pictures(16, start=16), adapt="sync", stream="s")
        await settled_version(second, "s", 2)
        assert (await history_of(second))["batch"] == [1, 2]


async def test_a_batch_that_is_done_again_is_in_the_history_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker loses its leases after it has learned, before that is stored: it learns again."""
    assert engine._deployment is not None
    leases = engine._deployment._leases
    assert leases is not None
    settle = RedisQueue.settle
    refused: list[int] = []

    def refuse_once(self: RedisQueue, settlement: Any) -> None:
        if settlement.state is not None and settlement.finished and not refused:
            refused.append(1)
            leases.in_doubt()
        settle(self, settlement)

    monkeypatch.setattr(RedisQueue, "settle", refuse_once)
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await settled_version(engine, "s", 1)
    await ask(engine, pictures(16, start=16), adapt="sync", stream="s")
    (track,) = (await settled_version(engine, "s", 2))["tracks"]
    assert refused
    columns = await history_of(engine)
    assert (columns["batch"], columns["version"]) == ([1, 2], [1, 2])
    assert track["applied"] == 2


async def test_listeners_are_told_of_streams_in_redis(
    engine: Engine, settings: Callable[..., Settings]
) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await settled_version(engine, "s", 1)
    async with Listening(create_app(settings(), engine)) as listening:
        await listening.opened()
        first = await listening.next("streams")
        assert (first["whole"], first["total"]) == (True, 1)
        (card,) = first["streams"]
        assert (card["name"], card["version"], card["waiting"]) == ("s", 1, None)
        assert card["tracks"][0]["recent"]["version"] == [1]
        await ask(engine, pictures(16, start=16), adapt="sync", stream="t")
        names = set()
        while "t" not in names:
            names |= {card["name"] for card in (await listening.next("streams"))["streams"]}
        listening.leave()


async def test_listeners_are_told_how_many_workers_are_alive(
    engine: Engine, settings: Callable[..., Settings]
) -> None:
    async with Listening(create_app(settings(), engine)) as listening:
        await listening.opened()
        while (await listening.next("server"))["workers"] != 1:  # the next look at Redis counts it
            pass
        listening.leave()


async def test_listeners_are_told_when_redis_is_gone_and_back(tmp_path: Path) -> None:
    with redis_server() as own:
        configured = Settings(
            **{**TOY, "data_folder": tmp_path / "data", "redis_url": own.url, "lease_s": 1.0},
            redis_timeout_s=1.0,
            events_interval_s=0.05,
        )
        async with running_engine(configured, encoder=ToyEncoder()) as engine:
            await fill(engine)
            await ask(engine, pictures(16), adapt="sync", stream="s")
            await settled_version(engine, "s", 1)
            async with Listening(create_app(configured, engine)) as listening:
                await listening.opened()
                assert (await listening.next("streams"))["total"] == 1
                own.pause()
                assert (await listening.next("trouble"))["message"]
                own.resume()
                assert (await listening.next("streams"))["total"] == 1
                listening.leave()
