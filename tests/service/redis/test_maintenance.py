"""`attune redis status` and `attune redis gc` on a real Redis, with what running processes leave there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from benchmarks.redis_server import RedisServer
from service.cli import app
from service.engine import running_engine
from service.messages import RetrieveRequest
from service.redis import maintenance
from service.redis.connection import Scripts
from service.redis.keys import GATHERING_TTL_S, GROUP, LAYOUT_VERSION, PARTITIONS, Keys, partition_of
from service.redis.maintenance import Collected, collect, status
from service.settings import Settings
from tests.service.conftest import fill
from tests.service.test_engine import texts
from tests.toy import ToyEncoder

P = 3
"""The partition that these tests play with."""


class Deployment:
    """What a worker and an API process write, by their own scripts."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self.client, self.keys = client, keys
        self.scripts = Scripts(client)

    def own(self, worker: str = "w1") -> str:
        keys = self.keys
        (_, token) = self.scripts.acquire(
            keys=[keys.lease(P), keys.fence(P), keys.queue(P)], args=[worker, 60_000, GROUP, 1]
        )
        self.scripts.beat(keys=[keys.workers, keys.waiting], args=[worker, 60_000])
        return f"{worker}:{token}"

    def put(self, items: int = 1) -> bytes:
        keys = [self.keys.waiting, self.keys.queue(P), self.keys.bell(P)]
        status, entry = self.scripts.put(keys=keys, args=[1000, 10**15, items, b"job"])
        assert status == b"ok"
        return entry

    def read(self, lease: str) -> None:
        self.scripts.read(
            keys=[self.keys.lease(P), self.keys.queue(P), self.keys.bell(P)],
            args=[GROUP, lease.partition(":")[0], 1 << 20, 16, lease],
        )

    def begin(self, lease: str, entry: bytes) -> int:
        keys = [self.keys.lease(P), self.keys.withdrawn(P), self.keys.attempts(P), self.keys.queue(P)]
        (count,) = self.scripts.begin(keys=keys, args=[lease, GROUP, entry])
        return count

    def withdraw(self, entry: bytes, items: int = 1) -> None:
        keys = [self.keys.waiting, self.keys.queue(P), self.keys.withdrawn(P), self.keys.attempts(P)]
        assert self.scripts.withdraw(keys=keys, args=[entry, items, GROUP, 600]) == 1

    def gather(self, stream: str, *, idle_s: int = 0) -> tuple[str, str]:
        """A gathering as settle.lua makes it. -> (its list, the partition's set)"""
        listed, index = (
            self.keys.gathering(stream, "g/text->text"),
            self.keys.gatherings(partition_of(stream)),
        )
        self.client.rpush(listed, b"job")
        self.client.zadd(index, {f"{stream}/g/text->text": 0})
        self.client.expire(listed, GATHERING_TTL_S - idle_s)
        return listed, index


@pytest.fixture
def deployment(client: redis.Redis, keys: Keys) -> Deployment:
    return Deployment(client, keys)


def removed(found: Collected) -> dict[str, Any]:
    """What is not zero."""
    values = asdict(found)
    return {
        name: value for name, value in values.items() if value and not name.startswith(("waiting", "dry"))
    }


# -- gc ----------------------------------------------------------------------------------------------


def test_an_empty_redis_holds_nothing_to_remove(client: redis.Redis, keys: Keys) -> None:
    assert removed(collect(client, keys)) == {}


def test_a_consumer_of_a_dead_worker_goes_once_nothing_is_pending_with_it(deployment: Deployment) -> None:
    client, keys = deployment.client, deployment.keys
    lease = deployment.own("dead")
    entry = deployment.put()
    deployment.read(lease)
    client.delete(keys.lease(P))
    client.zadd(keys.workers, {"dead": 0})
    assert "consumers_of_dead_workers" not in removed(collect(client, keys))
    client.xack(keys.queue(P), GROUP, entry)
    assert removed(collect(client, keys))["consumers_of_dead_workers"] == 1
    assert client.xinfo_consumers(keys.queue(P), GROUP) == []


@pytest.mark.parametrize("alive_by", ["workers", "lease"])
def test_a_consumer_of_a_living_worker_stays(deployment: Deployment, alive_by: str) -> None:
    client, keys = deployment.client, deployment.keys
    lease = deployment.own()
    deployment.put()
    deployment.read(lease)
    (entry,) = (entry for entry, _ in client.xrange(keys.queue(P)))
    client.xack(keys.queue(P), GROUP, entry)
    client.delete(keys.lease(P) if alive_by == "workers" else keys.workers)
    assert "consumers_of_dead_workers" not in removed(collect(client, keys))
    assert len(client.xinfo_consumers(keys.queue(P), GROUP)) == 1


def test_a_stream_whose_state_has_expired_leaves_the_index(client: redis.Redis, keys: Keys) -> None:
    client.hset(keys.stream("kept"), "state", b"...")
    client.zadd(keys.streams, {"kept": 1, "gone": 2})
    assert removed(collect(client, keys)) == {"streams_without_state": 1}
    assert client.zrange(keys.streams, 0, -1) == [b"kept"]


def test_more_streams_than_one_script_takes_are_all_looked_at(client: redis.Redis, keys: Keys) -> None:
    client.zadd(keys.streams, {f"gone-{n}": n for n in range(1300)})
    assert removed(collect(client, keys)) == {"streams_without_state": 1300}
    assert client.zcard(keys.streams) == 0


def test_a_listed_gathering_without_a_list_leaves_the_set(deployment: Deployment) -> None:
    listed, index = deployment.gather("s")
    deployment.client.delete(listed)
    assert removed(collect(deployment.client, deployment.keys)) == {"empty_gatherings": 1}
    assert not deployment.client.exists(index)


def test_a_gathering_in_use_stays_though_its_stream_has_no_state_yet(deployment: Deployment) -> None:
    listed, index = deployment.gather("new", idle_s=600)
    assert removed(collect(deployment.client, deployment.keys)) == {}
    assert deployment.client.exists(listed, index) == 2


def test_an_old_gathering_goes_only_without_a_state(deployment: Deployment) -> None:
    client, keys = deployment.client, deployment.keys
    orphan, index = deployment.gather("orphan", idle_s=3 * 3_600)
    kept, _ = deployment.gather("kept", idle_s=3 * 3_600)
    client.hset(keys.stream("kept"), "state", b"...")
    assert removed(collect(client, keys, older_than_s=4 * 3_600)) == {}
    assert removed(collect(client, keys, older_than_s=2 * 3_600)) == {"orphaned_gatherings": 1}
    assert (client.exists(orphan), client.exists(kept), client.exists(index)) == (0, 1, 0)


def test_attempts_stay_while_the_entry_is_pending(deployment: Deployment) -> None:
    client, keys = deployment.client, deployment.keys
    lease = deployment.own()
    entry = deployment.put()
    deployment.read(lease)
    assert deployment.begin(lease, entry) == 1
    assert removed(collect(client, keys)) == {}
    assert deployment.begin(lease, entry) == 2
    client.xack(keys.queue(P), GROUP, entry)
    client.xdel(keys.queue(P), entry)
    assert removed(collect(client, keys)) == {"attempts": 1}
    assert not client.exists(keys.attempts(P))


def test_attempts_without_a_queue_go(client: redis.Redis, keys: Keys) -> None:
    client.hset(keys.attempts(P), "1-0", 1)
    assert removed(collect(client, keys)) == {"attempts": 1}


def test_a_fresh_mark_of_a_withdrawn_entry_stays_and_an_old_one_goes(deployment: Deployment) -> None:
    client, keys = deployment.client, deployment.keys
    entry = deployment.put()
    deployment.withdraw(entry)
    client.sadd(keys.withdrawn(P), "1000-0")
    assert removed(collect(client, keys)) == {"withdrawn": 1}
    assert client.smembers(keys.withdrawn(P)) == {entry}


def test_results_of_a_dead_api_process_go_with_its_name(client: redis.Redis, keys: Keys) -> None:
    seconds, _ = client.time()
    now_ms = seconds * 1000
    client.zadd(keys.apis, {"dead": now_ms - 120_000, "paused": now_ms - 60_000, "alive": now_ms})
    for api in ("dead", "paused", "alive", "unheard-of"):
        client.xadd(keys.results(api), {"job": b"1", "reply": b"2"})
    assert removed(collect(client, keys)) == {"results_of_dead_apis": 2, "apis": 1}
    assert set(client.zrange(keys.apis, 0, -1)) == {b"paused", b"alive"}
    assert client.exists(*(keys.results(api) for api in ("dead", "unheard-of"))) == 0
    assert client.exists(*(keys.results(api) for api in ("paused", "alive"))) == 2


def test_only_workers_unheard_of_for_long_are_struck_off(deployment: Deployment) -> None:
    client, keys = deployment.client, deployment.keys
    deployment.own("alive")
    client.zadd(keys.workers, {"dead": 5})
    assert removed(collect(client, keys)) == {"workers": 1}
    assert client.zrange(keys.workers, 0, -1) == [b"alive"]


def test_the_waiting_items_are_counted_from_the_entries(deployment: Deployment) -> None:
    client, keys = deployment.client, deployment.keys
    for items in (*range(20), 5):
        deployment.put(items)
    client.set(keys.waiting, 7)
    found = collect(client, keys)
    assert (found.waiting_was, found.waiting_is) == (7, 195)
    assert client.get(keys.waiting) == b"195"


def test_the_waiting_items_are_not_counted_where_that_would_hold_redis_up(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.put(2)
    monkeypatch.setattr(maintenance, "RECOUNT_BYTES", 1)
    found = collect(deployment.client, deployment.keys)
    assert (found.waiting_was, found.waiting_is) == (2, None)


def test_other_layouts_go_only_when_asked_for_and_not_in_use(client: redis.Redis, keys: Keys) -> None:
    seconds, _ = client.time()
    space = keys.namespace
    client.set(f"{space}:900:waiting", 1)
    client.set(f"{space}:901:waiting", 1)
    client.zadd(f"{space}:901:workers", {"alive": seconds * 1000})
    client.set(f"{space}:limits", 1)
    client.set(keys.waiting, 0)
    assert removed(collect(client, keys)) == {}
    found = collect(client, keys, old_layouts=True)
    assert removed(found) == {"old_layout_keys": 1, "old_layouts_in_use": ("901",)}
    left = {key.decode().removeprefix(f"{space}:") for key in client.scan_iter(f"{space}:*")}
    assert left == {"901:waiting", "901:workers", "limits", f"{LAYOUT_VERSION}:waiting"}


def test_a_dry_run_says_the_same_and_removes_nothing(deployment: Deployment) -> None:
    client, keys = deployment.client, deployment.keys
    deployment.gather("orphan", idle_s=3 * 3_600)
    client.zadd(keys.streams, {"gone": 1})
    client.zadd(keys.workers, {"dead": 5})
    client.zadd(keys.apis, {"dead": 5})
    client.xadd(keys.results("dead"), {"job": b"1", "reply": b"2"})
    client.hset(keys.attempts(P), "1-0", 1)
    client.sadd(keys.withdrawn(P), "1-0")
    client.xgroup_create(keys.queue(P), GROUP, "0", mkstream=True)
    client.xgroup_createconsumer(keys.queue(P), GROUP, "dead")
    client.set(keys.waiting, 9)
    client.set(f"{keys.namespace}:900:waiting", 1)
    before = {key: client.dump(key) for key in client.scan_iter(f"{keys.namespace}:*")}
    foretold = collect(client, keys, dry_run=True, old_layouts=True)
    assert {key: client.dump(key) for key in client.scan_iter(f"{keys.namespace}:*")} == before
    done = collect(client, keys, old_layouts=True)
    assert asdict(foretold) == asdict(done) | {"dry_run": True}
    assert len(removed(done)) == 9
    assert removed(collect(client, keys, old_layouts=True)) == {}


@pytest.mark.anyio
async def test_gc_beside_a_running_engine_takes_nothing_from_it(
    redis_settings: Callable[..., Settings], client: redis.Redis, keys: Keys
) -> None:
    settings = redis_settings(gather_max_age_s=1000)
    async with running_engine(settings, encoder=ToyEncoder()) as engine:
        await fill(engine)
        for stream in ("a", "b"):
            for _ in range(3):
                await engine.retrieve(RetrieveRequest(queries=texts(1), stream=stream, adapt="async"))
                assert removed(collect(client, keys)) == {}
        for query in texts(16):
            await engine.retrieve(RetrieveRequest(queries=(query,), stream="a", adapt="async"))
            assert removed(collect(client, keys)) == {}
        (track,) = (await engine.describe_stream("b"))["tracks"]
        assert track["gathered"] == 3
        found = status(client, keys, lease_s=settings.lease_s)
        assert (found["partitions_owned"], found["waiting_items"]) == (PARTITIONS, 0)
        assert [worker["alive"] for worker in found["workers"]] == [True]


# -- status ------------------------------------------------------------------------------------------


def test_status_tells_who_owns_what_and_what_waits(deployment: Deployment) -> None:
    client, keys = deployment.client, deployment.keys
    lease = deployment.own()
    deployment.put(3)
    deployment.read(lease)
    deployment.put(2)
    client.zadd(keys.workers, {"dead": 5})
    client.zadd(keys.apis, {"old": 5})
    client.zadd(keys.streams, {"a": 1, "b": 2})
    client.set(f"{keys.namespace}:900:waiting", 1)
    found = status(client, keys, lease_s=4.0)
    assert [(w["worker"], w["alive"], w["partitions"]) for w in found["workers"]] == [
        ("w1", True, 1), ("dead", False, 0),
    ]  # fmt: skip
    assert [(api["api"], api["alive"]) for api in found["apis"]] == [("old", False)]
    assert (found["partitions_owned"], found["partitions_free"]) == (1, PARTITIONS - 1)
    assert (found["waiting_items"], found["streams"]) == (5, 2)
    (partition,) = found["partitions"]
    assert partition["oldest_pending_s"] >= 0
    assert partition | {"oldest_pending_s": None} == {
        "partition": P, "owner": "w1", "entries": 2, "pending": 1, "oldest_pending_s": None, "gatherings": 0,
    }  # fmt: skip
    assert (found["layout_version"], found["other_layouts"]) == (LAYOUT_VERSION, {"900": 1})


def test_memory_is_measured_by_kind_and_estimated_where_keys_are_many(
    client: redis.Redis, keys: Keys
) -> None:
    for n in range(30):
        client.hset(keys.stream(f"s{n}"), "state", b"x" * 10_000)
    client.set(keys.waiting, 1)
    rows = {row["kind"]: row for row in status(client, keys, lease_s=4.0, sample=10)["memory"]}
    assert (rows["stream"]["keys"], rows["stream"]["estimated"]) == (30, True)
    assert 10_000 <= rows["stream"]["bytes_a_key"] < 20_000
    assert rows["stream"]["bytes"] == pytest.approx(30 * rows["stream"]["bytes_a_key"], abs=30)  # rounded
    assert (rows["waiting"]["keys"], rows["waiting"]["estimated"]) == (1, False)


# -- the commands ------------------------------------------------------------------------------------


@pytest.fixture
def attune(monkeypatch: pytest.MonkeyPatch, server: RedisServer, namespace: str) -> Callable[..., Any]:
    monkeypatch.setenv("ATTUNE_REDIS_URL", server.url)
    monkeypatch.setenv("ATTUNE_REDIS_NAMESPACE", namespace)
    return lambda *arguments: CliRunner().invoke(app, ["redis", *arguments])


def test_the_commands_show_tables_and_json(attune: Callable[..., Any], deployment: Deployment) -> None:
    deployment.own("worker-7")
    deployment.put(3)
    shown = attune("status")
    assert shown.exit_code == 0
    assert "worker-7" in shown.output
    assert "3 items" in shown.output
    assert json.loads(attune("status", "--json").output)["waiting_items"] == 3
    deployment.client.zadd(deployment.keys.streams, {"gone": 1})
    told = attune("gc", "--dry-run")
    assert told.output.startswith("would remove")
    assert json.loads(attune("gc", "--json").output)["streams_without_state"] == 1
    assert json.loads(attune("gc", "--json").output)["streams_without_state"] == 0


def test_without_redis_the_commands_say_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTUNE_REDIS_URL", raising=False)
    found = CliRunner().invoke(app, ["redis", "status"])
    assert found.exit_code == 2
    assert "ATTUNE_REDIS_URL" in found.output


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("redis://user:s3cret@127.0.0.1:1/0", 1),
        ("redis://:s3cret/x@127.0.0.1:6379/0", 2),
        ("redis://127.0.0.1:1/0?password=s3cret", 1),
        ("http://user:s3cret@127.0.0.1/0", 2),
    ],
)
def test_the_password_is_never_shown(monkeypatch: pytest.MonkeyPatch, url: str, code: int) -> None:
    monkeypatch.setenv("ATTUNE_REDIS_URL", url)
    for command in ("status", "gc"):
        found = CliRunner().invoke(app, ["redis", command])
        assert found.exit_code == code
        assert "s3cret" not in found.output


def test_a_wrong_password_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    monkeypatch.setenv("ATTUNE_REDIS_URL", server.url.replace("redis://", "redis://nobody:s3cret@"))
    found = CliRunner().invoke(app, ["redis", "status"])
    assert found.exit_code == 1
    assert "refuses user or password" in found.output
    assert "s3cret" not in found.output
