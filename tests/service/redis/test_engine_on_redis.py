"""The whole engine with its queue and states in a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from service.engine import Engine, running_engine
from service.messages import Query, RetrieveAnswer, RetrieveRequest
from service.redis.keys import Keys
from service.settings import Settings
from tests.service.conftest import fill
from tests.service.test_engine import texts
from tests.service.test_previews import previews_are_kept_and_told
from tests.toy import ToyEncoder

pytestmark = pytest.mark.anyio


async def ask(engine: Engine, queries: tuple[Query, ...], **more: Any) -> RetrieveAnswer:
    return await engine.retrieve(RetrieveRequest(queries=queries, **more))


@pytest.fixture
async def engine(redis_settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    async with running_engine(redis_settings(), encoder=ToyEncoder()) as running:
        await fill(running)
        yield running


async def test_a_query_is_answered_through_redis(engine: Engine, client: redis.Redis, keys: Keys) -> None:
    answer = await ask(engine, texts(3), target="text", adapt="off", k=1)
    assert [hits[0].id for hits in answer.hits] == ["i0", "i1", "i2"]
    assert int(client.get(keys.waiting) or 0) == 0
    assert sum(client.xlen(keys.queue(p)) for p in range(64)) == 0


async def test_previews_travel_through_redis(redis_settings: Callable[..., Settings]) -> None:
    async with running_engine(redis_settings(), encoder=ToyEncoder()) as engine:
        await previews_are_kept_and_told(engine)
