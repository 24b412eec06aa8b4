"""What is delivered a second time, and what must not be: against a real Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from service.engine import Engine, running_engine
from service.errors import Conflict, QueueUnreachable
from service.messages import RetrieveJob, TrackKey
from service.queue.base import LostOwnership, Settlement
from service.redis.connection import Scripts
from service.redis.keys import GROUP, PARTITIONS, Keys, partition_of
from service.redis.leases import Leases
from service.redis.queue import RedisQueue
from service.settings import Settings
from service.states import FileStates
from service.streams import StreamStore
from service.tasks import Tasks
from service.tracks import Gathering
from tests.service.conftest import fill
from tests.service.redis.test_engine_on_redis import ask
from tests.service.redis.test_protocol import Worker, eventually, job, put, worker  # noqa: F401
from tests.service.test_engine import settled_version, texts
from tests.toy import ToyEncoder

pytestmark = pytest.mark.anyio


def one_stream_a_partition() -> list[str]:
    found: dict[int, str] = {}
    number = 0
    while len(found) < PARTITIONS:
        found.setdefault(partition_of(f"s{number}"), f"s{number}")
        number += 1
    return list(found.values())


# -- the queue -----------------------------------------------------------------------------------------


def test_a_job_is_not_finished_under_a_lease_that_was_given_up(
    worker: Callable[..., Worker],  # noqa: F811
    client: redis.Redis,
    keys: Keys,
) -> None:
    """The lease may still stand in Redis, but whatever was in memory under it is not to be relied on."""
    only = worker()
    put(client, keys, job())
    taken = only.take()
    only.leases.in_doubt()
    with pytest.raises(LostOwnership):
        only.queue.settle(Settlement(results=[(taken[0], {})]))
    (again,) = only.take()
    assert again.id == taken[0].id
    assert isinstance(again, RetrieveJob)
    assert again.again


def test_what_is_begun_is_not_withdrawn(
    worker: Callable[..., Worker],  # noqa: F811
    client: redis.Redis,
    keys: Keys,
) -> None:
    only, p = worker(), partition_of("a")
    (_, entry) = put(client, keys, job())
    (taken,) = only.take()
    withdrawn = Scripts(client).withdraw(
        keys=[keys.waiting, keys.queue(p), keys.withdrawn(p), keys.attempts(p)], args=[entry, 1, GROUP, 600]
    )
    assert withdrawn == 0
    assert client.xlen(keys.queue(p)) == 1
    only.queue.settle(Settlement(results=[(taken, {})]))
    assert (client.xlen(keys.queue(p)), client.get(keys.waiting)) == (0, b"0")


def test_what_was_begun_makes_the_same_batch_again_whatever_waits_beside_it(
    worker: Callable[..., Worker],  # noqa: F811
    client: redis.Redis,
    keys: Keys,
) -> None:
    first = worker("w1")
    put(client, keys, job(text="a"), job(text="b"))
    begun = first.take_all(2)
    put(client, keys, job(text="c"))
    first.vanish()
    second = worker("w2")
    eventually(lambda: second.queue.depth() == 3)  # all are there: what comes alone is not merely early
    again, later = second.take(), second.take()
    assert [each.id for each in again] == [each.id for each in begun]
    assert [each.queries[0].text for each in later if isinstance(each, RetrieveJob)] == ["c0"]


def test_what_was_begun_in_time_is_finished_however_late(
    worker: Callable[..., Worker],  # noqa: F811
    client: redis.Redis,
    keys: Keys,
) -> None:
    """Its answer may have left before its last update."""
    only = worker()
    deadline_at = time.monotonic() + 1.0
    put(client, keys, job(deadline_at=deadline_at))
    (taken,) = only.take()
    eventually(lambda: time.monotonic() > deadline_at)
    only.lose_and_regain()
    (again,) = only.take()
    assert (again.id, again.deadline_at) == (taken.id, None)


def test_jobs_in_hand_do_not_come_twice_when_their_partition_was_to_be_given_back(
    worker: Callable[..., Worker],  # noqa: F811
    client: redis.Redis,
    keys: Keys,
) -> None:
    first, names = worker("w1"), one_stream_a_partition()
    put(client, keys, *(job(name) for name in names))
    in_hand = first.take_all(PARTITIONS)
    second = worker("w2")
    eventually(lambda: len(first.leases.readable()) == PARTITIONS // 2)
    kept = {lease.partition for lease in first.leases.readable()}
    put(client, keys, job(next(name for name in names if partition_of(name) in kept), text="later"))
    (later,) = first.take()  # the reader has been round since
    second.leave()
    eventually(lambda: len(first.leases.readable()) == PARTITIONS)
    put(client, keys, job(names[0], text="last"))
    (last,) = first.take()
    assert len({each.id for each in [*in_hand, later, last]}) == PARTITIONS + 2
    assert first.take(within_s=0.3) == []


def test_jobs_left_to_the_next_owner_are_not_in_hand_any_more(
    worker: Callable[..., Worker],  # noqa: F811
    client: redis.Redis,
    keys: Keys,
) -> None:
    """Else their partition could never be given back, and nobody would do them."""
    only, p = worker(), partition_of("a")
    put(client, keys, job())
    taken = only.take()
    assert only.queue._busy(p)
    only.queue.leave(taken, QueueUnreachable("Redis does not answer"))
    (again,) = only.take()
    assert again.id == taken[0].id
    only.queue.settle(Settlement(results=[(again, {})]))
    assert not only.queue._busy(p)


def test_a_token_is_not_given_out_twice_by_a_redis_that_forgot_it(
    worker: Callable[..., Worker],  # noqa: F811
    client: redis.Redis,
    keys: Keys,
) -> None:
    only, p = worker(), partition_of("a")
    eventually(lambda: only.leases.token("a") is not None)
    old = only.leases.token("a")
    assert old is not None
    client.delete(keys.fence(p), keys.lease(p))
    eventually(lambda: only.leases.token("a") not in (None, old))
    assert (only.leases.token("a") or 0) > old


# -- gatherings and streams ----------------------------------------------------------------------------


def test_the_stored_gathering_keeps_a_batch_until_it_is_learned() -> None:
    """Jobs of 40 queries: the batch of 64 takes one whole and 24 of the next."""
    gathering = Gathering()
    gathering.join([job(items=40), job(items=40)])
    assert sum(len(part.asked) for part in gathering.take(64)) == 64
    assert (gathering.used, gathering.stored_used) == (24, 0)
    assert gathering.let_go() == 1
    assert (gathering.used, gathering.stored_used, gathering.let_go()) == (24, 24, 0)


class _OwnedStates(FileStates):
    deferred = True


def store(folder: Path, **limits: Any) -> StreamStore:
    return StreamStore(
        tasks=Tasks(ToyEncoder(), defaults={"retrieve": ("tcr", {})}),
        states=_OwnedStates(folder),
        **{"max_in_memory": 10, **limits},
    )


def test_a_reset_drops_the_stored_queries_of_a_batch_that_is_being_learned(tmp_path: Path) -> None:
    streams = store(tmp_path)
    stream = streams.find_or_create("s")
    track = streams.track(stream, TrackKey("s", "things", "text", "image"))
    track.gathered.join([job(items=16)])
    track.gathered.take(16)  # they have left memory, but not the store
    streams.reset("s")
    write = streams.write("s")
    assert write is not None
    assert list(write.ungathered) == [track.name]


def test_a_stream_does_not_leave_memory_while_it_adapts(tmp_path: Path) -> None:
    streams = store(tmp_path, max_in_memory=1)
    adapting = streams.find_or_create("a")
    adapting.adapting += 1
    streams.find_or_create("b")
    assert streams.is_current(adapting)
    adapting.adapting -= 1
    streams.find_or_create("c")
    assert not streams.is_current(adapting)


# -- the whole engine ----------------------------------------------------------------------------------


@pytest.fixture
async def engine(redis_settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    settings = redis_settings(guard={"policy": "off"}, gather_max_age_s=60.0)
    async with running_engine(settings, encoder=ToyEncoder()) as running:
        await fill(running)
        yield running


def _leases(engine: Engine) -> Leases:
    assert engine._deployment is not None
    leases = engine._deployment._leases
    assert leases is not None
    return leases


async def test_a_batch_answered_before_its_last_update_adapts_though_all_leases_are_lost_then(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_early = RedisQueue.answer_early
    broken: list[int] = []

    def break_once(self: RedisQueue, *results: Any) -> None:
        answer_early(self, *results)
        if not broken:
            broken.append(1)
            _leases(engine).in_doubt()

    monkeypatch.setattr(RedisQueue, "answer_early", break_once)
    first = await ask(engine, texts(16), stream="s", adapt="sync")
    assert first.parts[0].adaptation.state_version == 1
    second = await ask(engine, texts(16), stream="s", adapt="sync")
    assert broken
    assert second.parts[0].adaptation.state_version == 2
    described = await settled_version(engine, "s", 2)
    assert described["version"] == 2


async def test_a_stream_that_has_only_gathered_is_found_by_its_next_owner(engine: Engine) -> None:
    await ask(engine, texts(3), stream="s", adapt="async")
    old = _leases(engine).token("s")
    _leases(engine).in_doubt()
    eventually(lambda: _leases(engine).token("s") not in (None, old))
    described = await engine.describe_stream("s")
    assert described["tracks"][0]["gathered"] == 3


async def test_an_import_that_was_done_before_is_not_refused(engine: Engine) -> None:
    await ask(engine, texts(16), stream="s", adapt="sync")
    await settled_version(engine, "s", 1)
    await engine.create_snapshot("s", "one")
    data = await engine.export_snapshot("s", "one")
    assert engine._backend is not None
    snapshots = engine._backend.snapshots
    made = snapshots.import_("copy", "one", data)
    assert snapshots.import_("copy", "one", data, again=True) == made
    with pytest.raises(Conflict):
        snapshots.import_("copy", "one", data)
    other = await engine.export_snapshot("s", (await engine.create_snapshot("s", "two"))["name"])
    with pytest.raises(Conflict):
        snapshots.import_("copy", "one", other, again=True)


async def test_gathered_queries_that_were_answered_before_are_learned_once(
    engine: Engine, client: redis.Redis, keys: Keys
) -> None:
    """16 make a batch; between any two the stream is taken over anew."""
    for number in range(16):
        await ask(engine, texts(1, start=number), stream="s", adapt="async")
        _leases(engine).in_doubt()
    described = await settled_version(engine, "s", 1)
    assert (described["version"], described["tracks"][0]["gathered"]) == (1, 0)
    assert not list(client.scan_iter(f"{keys.prefix}gathering:*"))
