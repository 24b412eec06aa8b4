"""Leases, fencing, delivery and settlement against a real Redis, without a model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from benchmarks.redis_server import RedisServer
from service.codec import RemoteFailure, pack_job
from service.errors import DeadlineExceeded, QueueFull, QueueUnreachable
from service.messages import ControlJob, Job, Query, RetrieveJob, TrackKey
from service.metrics import Metrics
from service.queue.base import ADOPT, GatherWrite, LostOwnership, Settlement, StateWrite
from service.redis.connection import Clock, Scripts, connect, connect_async
from service.redis.keys import GROUP, PARTITIONS, Keys, partition_of
from service.redis.leases import Leases
from service.redis.queue import Limits, RedisQueue
from service.redis.states import RedisStates
from service.redis.submitter import RedisSubmitter

pytestmark = pytest.mark.anyio

LEASE_S = 0.6


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Worker:
    """A worker's end without a model: the test takes and settles."""

    def __init__(self, url: str, keys: Keys, name: str, **limits: Any) -> None:
        clock = Clock()
        self.metrics = Metrics()
        self.clients = [connect(url, timeout_s=timeout_s) for timeout_s in (1, 1, 3, 1)]
        self.leases = Leases(self.clients[0], keys, worker=name, lease_s=LEASE_S, clock=clock)
        self.queue = RedisQueue(
            client=self.clients[1],
            reader=self.clients[2],
            keys=keys,
            leases=self.leases,
            clock=clock,
            limits=Limits(
                **{"capacity_items": 100, "prefetch_items": 64, "max_attempts": 3, "stream_ttl_s": 0} | limits
            ),
            metrics=self.metrics,
        )
        self.states = RedisStates(self.clients[3], keys, self.leases, clock)
        self.queue.start()

    def take(self, *, within_s: float = 10.0) -> list[Job]:
        """The next batch; empty if none comes in time."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            jobs = self.queue.take(max_items=64, max_wait_s=0, timeout_s=0.05, accept=lambda job: True)
            if jobs:
                return jobs
        return []

    def take_all(self, count: int) -> list[Job]:
        """The next batches, until they hold `count` jobs."""
        found: list[Job] = []
        while len(found) < count:
            batch = self.take()
            assert batch, f"{len(found)} of {count} jobs came"
            found += batch
        return found

    def lose_and_regain(self) -> None:
        """As when the connection breaks for a moment: all leases are gained anew."""
        eventually(lambda: self.leases.token("a") is not None)
        old = self.leases.token("a")
        self.leases.in_doubt()
        eventually(lambda: self.leases.token("a") not in (None, old))

    def leave(self) -> None:
        self.queue.close()
        self.leases.stop()
        self.close()

    def vanish(self) -> None:
        """As a crash: nothing is given back."""
        self.leases._stopping.set()
        self.leases._thread.join()
        self.queue._closed = True
        self.queue._thread.join()

    def close(self) -> None:
        for client in self.clients:
            client.close()


@pytest.fixture
def worker(server: RedisServer, keys: Keys) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def make(name: str = "w1", **limits: Any) -> Worker:
        made.append(Worker(server.url, keys, name, **limits))
        return made[-1]

    yield make
    for each in made:
        if each.leases._thread.is_alive():
            each.leave()
        else:
            each.close()


def job(stream: str = "a", *, text: str = "x", items: int = 1, **more: Any) -> RetrieveJob:
    key = TrackKey(stream, "g", "text", "image")
    queries = tuple(Query(text=f"{text}{n}") for n in range(items))
    return RetrieveJob(key, "async", queries, 1, accepted_at=time.monotonic(), **more)


def put(client: redis.Redis, keys: Keys, *jobs: Job, capacity: int = 100) -> list[Any]:
    """As the submitter does, at once."""
    homes = [
        partition_of(each.key.stream if isinstance(each, RetrieveJob) else each.stream or "") for each in jobs
    ]
    shift_s = time.time() - time.monotonic()
    pairs = [v for each in jobs for v in (each.items, pack_job(each, reply_to="api", shift_s=shift_s))]
    reply: list[Any] = Scripts(client).put(
        keys=[keys.waiting, *(k for p in homes for k in (keys.queue(p), keys.bell(p)))],
        args=[capacity, f"{(time.time() + 5) * 1000:.0f}", *pairs],
    )
    return reply


def eventually(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)


def state(queue: RedisQueue, stream: str, data: bytes, token: int | None = None) -> StateWrite:
    return StateWrite(stream, token or queue._leases.token(stream), data, {"name": stream})


# -- ownership --------------------------------------------------------------------------------------


def test_one_worker_owns_everything_and_a_second_takes_its_share(worker: Callable[..., Worker]) -> None:
    first = worker("w1")
    eventually(lambda: len(first.leases.held()) == PARTITIONS)
    second = worker("w2")
    eventually(lambda: len(first.leases.held()) == len(second.leases.held()) == PARTITIONS // 2)
    owned = {lease.partition for each in (first, second) for lease in each.leases.held()}
    assert len(owned) == PARTITIONS
    assert first.metrics.value("attune_lease_moves_total", action="released") == PARTITIONS // 2


def test_what_a_leaving_worker_owned_moves_at_once_and_its_jobs_with_it(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    first = worker("w1")
    put(client, keys, job(text="kept"))
    eventually(lambda: first.queue.depth() == 1)  # delivered, not begun
    first.leave()
    second = worker("w2")
    (found,) = second.take()
    assert isinstance(found, RetrieveJob)
    assert found.queries[0].text == "kept0"


def test_a_dead_workers_jobs_come_back_oldest_first(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    first = worker("w1")
    put(client, keys, job(text="a"))
    assert first.take()  # begun, never settled
    put(client, keys, job(text="b"), job(text="c"))
    eventually(lambda: first.queue.depth() == 2)
    first.vanish()
    second = worker("w2")
    found = second.take_all(3)
    assert [each.queries[0].text for each in found if isinstance(each, RetrieveJob)] == ["a0", "b0", "c0"]
    assert second.metrics.value("attune_redeliveries_total") == 3


def test_a_worker_that_lost_its_lease_cannot_write(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    first = worker("w1")
    put(client, keys, job())
    taken = first.take()
    old = first.leases.token("a")
    first.vanish()
    second = worker("w2")
    again = second.take()
    second.queue.settle(Settlement(results=[(again[0], {})], state=state(second.queue, "a", b"right")))
    with pytest.raises(LostOwnership):
        first.queue.settle(
            Settlement(results=[(taken[0], {})], state=StateWrite("a", old, b"wrong", {"name": "a"}))
        )
    assert client.hget(keys.stream("a"), "state") == b"right"
    assert (client.get(keys.fence(partition_of("a"))) or b"0") == str(second.leases.token("a")).encode()


def test_a_lease_gained_anew_does_not_cover_what_was_read_under_the_old_one(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    only = worker("w1")
    put(client, keys, job())
    taken = only.take()
    old = only.leases.token("a")
    only.lose_and_regain()
    with pytest.raises(LostOwnership):
        only.queue.settle(
            Settlement(results=[(taken[0], {})], state=StateWrite("a", old, b"stale", {"name": "a"}))
        )
    assert client.hget(keys.stream("a"), "state") is None
    (again,) = only.take()
    only.queue.settle(Settlement(results=[(again, {})], state=state(only.queue, "a", b"fresh")))
    assert client.hget(keys.stream("a"), "state") == b"fresh"
    assert client.get(keys.waiting) == b"0"


def test_a_new_state_does_not_cover_jobs_delivered_under_the_old_lease(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    only = worker("w1")
    put(client, keys, job())
    taken = only.take()
    only.lose_and_regain()
    for _ in range(2):
        with pytest.raises(LostOwnership):
            only.queue.settle(Settlement(finished=taken, state=state(only.queue, "a", b"mixed")))
    assert client.hget(keys.stream("a"), "state") is None
    assert len(only.take()) == 1  # delivered again, under the new one


def test_a_state_read_before_the_lease_changed_hands_is_out_of_date(worker: Callable[..., Worker]) -> None:
    only = worker("w1")
    eventually(lambda: only.states.owner_token("a") is not None)
    before = only.states.owner_token("a")
    only.leases.in_doubt()
    assert only.states.owner_token("a") is None
    eventually(lambda: only.states.owner_token("a") is not None)
    assert only.states.owner_token("a") != before


# -- settlement -------------------------------------------------------------------------------------


def test_results_state_and_acknowledgement_are_one_step(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    only = worker()
    client.zadd(keys.apis, {"api": time.time() * 1000})
    put(client, keys, job(items=3))
    taken = only.take()
    p = partition_of("a")
    assert client.get(keys.waiting) == b"3"
    only.queue.answer_early([(taken[0], {"early": True})])
    assert (client.xlen(keys.results("api")), client.xlen(keys.queue(p))) == (1, 1)
    only.queue.settle(Settlement(finished=taken, state=state(only.queue, "a", b"S")))
    assert (client.xlen(keys.queue(p)), client.get(keys.waiting)) == (0, b"0")
    assert client.xpending(keys.queue(p), GROUP)["pending"] == 0
    assert client.hgetall(keys.attempts(p)) == {}
    assert only.states.load("a") == b"S"
    assert only.states.names() == ["a"]


def test_results_of_a_dead_api_process_are_not_kept(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    only = worker()
    put(client, keys, job())
    only.queue.settle(Settlement(results=[(only.take()[0], {})]))
    assert client.exists(keys.results("api")) == 0
    assert client.get(keys.waiting) == b"0"


def test_gathered_jobs_move_from_the_queue_to_the_gathering_and_survive_their_worker(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    first = worker("w1")
    put(client, keys, job(text="a"), job(text="b"), job(text="c"))
    found = first.take_all(3)
    joining = [each for each in found if isinstance(each, RetrieveJob)]
    token = first.leases.token("a")
    first.queue.settle(
        Settlement(
            results=[(each, {}) for each in joining],
            gathering=GatherWrite("a", token, "g/text->image", join=joining),
        )
    )
    assert client.get(keys.waiting) == b"0"
    first.queue.settle(
        Settlement(
            gathering=GatherWrite("a", token, "g/text->image", drop=1), state=state(first.queue, "a", b"S")
        )
    )
    first.vanish()
    second = worker("w2")
    (adopt,) = second.take()
    assert isinstance(adopt, ControlJob)
    assert (adopt.action, adopt.stream) == (ADOPT, "a")
    (jobs,) = second.states.gathered("a").values()
    assert [each.queries[0].text for each in jobs] == ["b0", "c0"]
    token = second.leases.token("a")
    second.queue.settle(Settlement(gathering=GatherWrite("a", token, "g/text->image", drop=2)))
    assert second.states.gathered("a") == {}


def test_a_deleted_stream_leaves_nothing(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    only = worker()
    put(client, keys, job())
    (taken,) = only.take()
    assert isinstance(taken, RetrieveJob)
    token = only.leases.token("a")
    gathering = GatherWrite("a", token, "t", join=[taken])
    only.queue.settle(
        Settlement(results=[(taken, {})], gathering=gathering, state=state(only.queue, "a", b"S"))
    )
    only.queue.settle(Settlement(state=StateWrite("a", token, None, {}, ungathered=("t",))))
    assert client.exists(keys.stream("a"), keys.gathering("a", "t")) == 0
    assert only.states.names() == []
    assert only.states.gathered("a") == {}


def test_a_job_that_kills_its_workers_fails_in_the_end(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    client.zadd(keys.apis, {"api": time.time() * 1000})
    put(client, keys, job())
    for n in range(3):
        doomed = worker(f"w{n}")
        assert doomed.take()
        doomed.vanish()
    last = worker("w9")
    assert last.take(within_s=3 * LEASE_S) == []
    ((_, fields),) = client.xrange(keys.results("api"))
    assert b"worn_out" in fields[b"reply"]
    assert client.get(keys.waiting) == b"0"


def test_bytes_that_are_no_message_are_dropped_and_the_rest_goes_on(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    only = worker()
    p = partition_of("a")
    client.xadd(keys.queue(p), {"items": 1, "job": b"\x80\x04pickle"})
    client.incrby(keys.waiting, 1)
    put(client, keys, job(text="good"))
    (found,) = only.take()
    assert isinstance(found, RetrieveJob)
    assert found.queries[0].text == "good0"
    assert client.get(keys.waiting) == b"1"


def test_an_expired_job_is_failed_and_not_begun(
    worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    client.zadd(keys.apis, {"api": time.time() * 1000})
    put(client, keys, job(deadline_at=time.monotonic() - 1), job(text="fresh"))
    only = worker()
    (found,) = only.take()
    assert isinstance(found, RetrieveJob)
    assert found.queries[0].text == "fresh0"
    ((_, fields),) = client.xrange(keys.results("api"))
    assert b"deadline_exceeded" in fields[b"reply"]


# -- the routes' end --------------------------------------------------------------------------------


@contextmanager
def serving(worker: Worker, answer: Callable[[Job], Any]) -> Iterator[None]:
    """Settle every job with `answer` in the background."""
    going = True

    def serve() -> None:
        while going:
            jobs = worker.take(within_s=0.1)
            worker.queue.settle(Settlement(results=[(each, answer(each)) for each in jobs]))

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(serve)
        try:
            yield
        finally:
            going = False
            done.result()


@pytest.fixture
async def submitter(server: RedisServer, keys: Keys, client: redis.Redis) -> Any:
    made = RedisSubmitter(
        client=connect_async(server.url, timeout_s=1),
        reader=connect_async(server.url, timeout_s=3),
        keys=keys,
        api="api",
        clock=Clock(),
        capacity_items=100,
        max_job_bytes=1 << 20,
        timeout_s=1.0,
    )
    client.zadd(keys.apis, {"api": time.time() * 1000 + 60_000})
    made.up = True
    made.start()
    yield made
    await made.close()
    await made._client.aclose()
    await made._reader.aclose()


async def test_an_answer_and_a_failure_come_back_to_who_asked(
    submitter: RedisSubmitter, worker: Callable[..., Worker]
) -> None:
    only = worker()

    def answer(each: Job) -> Any:
        assert isinstance(each, RetrieveJob)
        return KeyError("inside") if each.key.stream == "bad" else {"stream": each.key.stream}

    with serving(only, answer):
        first, second = await submitter.ask([job("a"), job("b")], timeout_s=10)
        assert (first, second) == ({"stream": "a"}, {"stream": "b"})
        with pytest.raises(RemoteFailure) as failure:
            await submitter.ask([job("bad")], timeout_s=10)
        assert (failure.value.status, "inside" in str(failure.value)) == (500, False)
        many = await asyncio.gather(*(submitter.ask([job(f"s{n}")], timeout_s=10) for n in range(50)))
    assert [one["stream"] for (one,) in many] == [f"s{n}" for n in range(50)]


async def test_more_than_the_queue_holds_is_refused_and_changes_nothing(
    submitter: RedisSubmitter, client: redis.Redis, keys: Keys
) -> None:
    put(client, keys, job(items=99))
    with pytest.raises(QueueFull):
        await submitter.ask([job("a", items=1), job("b", items=1)], timeout_s=5)
    assert client.get(keys.waiting) == b"99"
    assert client.xlen(keys.queue(partition_of("b"))) == 0


@pytest.fixture
def full(client: redis.Redis) -> Iterator[Callable[[], None]]:
    """Call it, and Redis has no memory left."""

    def fill() -> None:
        client.config_set("maxmemory", 1)

    yield fill
    client.config_set("maxmemory", 0)


async def test_a_full_redis_takes_no_more_jobs_and_is_emptied(
    submitter: RedisSubmitter,
    worker: Callable[..., Worker],
    client: redis.Redis,
    keys: Keys,
    full: Callable[[], None],
) -> None:
    only = worker()
    eventually(lambda: len(only.leases.held()) == PARTITIONS)
    put(client, keys, job("a"), job("b"))
    full()
    with pytest.raises(QueueFull):
        await submitter.ask([job("c")], timeout_s=5)
    await asyncio.sleep(3 * LEASE_S)
    eventually(lambda: len(only.leases.held()) == PARTITIONS)  # they go on being renewed
    for _ in range(2):
        (taken,) = await asyncio.to_thread(only.take)
        assert isinstance(taken, RetrieveJob)
        data = state(only.queue, taken.key.stream, b"S")
        only.queue.settle(Settlement(results=[(taken, {})], state=data))
    assert client.get(keys.waiting) == b"0"
    assert sorted(only.states.names()) == ["a", "b"]


async def test_a_client_that_leaves_takes_its_job_along(
    submitter: RedisSubmitter, client: redis.Redis, keys: Keys, worker: Callable[..., Worker]
) -> None:
    task = asyncio.ensure_future(submitter.ask([job("a", text="left")], timeout_s=30))
    while not client.xlen(keys.queue(partition_of("a"))):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while client.get(keys.waiting) != b"0":
        await asyncio.sleep(0.01)
    put(client, keys, job("a", text="next"))
    only = worker()
    (found,) = await asyncio.to_thread(only.take)
    assert isinstance(found, RetrieveJob)
    assert found.queries[0].text == "next0"


async def test_a_job_in_a_workers_buffer_is_withdrawn_too(
    submitter: RedisSubmitter, worker: Callable[..., Worker], client: redis.Redis, keys: Keys
) -> None:
    only = worker()
    with pytest.raises(DeadlineExceeded):
        await submitter.ask([job("a")], timeout_s=0.5)
    while client.get(keys.waiting) != b"0":
        await asyncio.sleep(0.01)
    assert await asyncio.to_thread(only.take, within_s=0.3) == []
    assert only.metrics.value("attune_queries_dropped_total", outcome="cancelled") == 1


async def test_a_put_that_redis_sees_too_late_is_refused(
    submitter: RedisSubmitter, client: redis.Redis, keys: Keys
) -> None:
    submitter._clock.shift_s -= 60  # as if the put had been on its way for a minute
    with pytest.raises(QueueUnreachable):
        await submitter.ask([job("a")], timeout_s=5)
    assert client.get(keys.waiting) is None
    assert client.xlen(keys.queue(partition_of("a"))) == 0


def test_an_api_process_needs_no_torch() -> None:
    program = (
        "import sys, service.http.app, service.engine, service.redis.deployment;"
        "sys.exit(bool({'torch', 'transformers', 'faiss'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
