"""Real processes that are killed, paused and cut off under load; nothing accepted is lost or learned twice.

One deployment for the whole module. The tests run in this order: each makes a fault while the load goes on,
the last ones look at what has become of the streams.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import torch

from benchmarks.cluster import Cluster, cluster, until
from benchmarks.faults import Chaos, Load, check_gatherings, come_to_rest, compare, run_cycle
from benchmarks.redis_server import executable
from service.redis.keys import partition_of

try:
    executable()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)

WAIT_S = 60.0
KINDS = (
    "leases taken away",  # everything in hand is delivered a second time
    "worker paused past its lease",
    "worker killed",  # what replaces it joins while the load goes on
    "connections cut",
    "Redis paused",
    "API killed",
    "Redis killed",
    "leases taken away",
    "connections cut",
    "Redis killed",
    "worker paused past its lease",
)
TEXTS = [f"a red star and a blue boat {number}" for number in range(64)]


@dataclass
class Storm:
    cluster: Cluster
    load: Load
    chaos: Chaos


@pytest.fixture(scope="module")
def storm() -> Iterator[Storm]:
    """Two API processes, two workers, and clients at work."""
    with cluster(apis=2, workers=2) as running:
        load = Load(running, streams=5, seed=0, pause_s=0.3)
        chaos = Chaos(running, load, workers=2, apis=2, seed=0)
        chaos.tend()
        load.start()
        yield Storm(running, load, chaos)
        load.finish()


def sync(address: str, stream: str) -> httpx.Response:
    body = {"queries": [{"text": text} for text in TEXTS], "stream": stream, "adapt": "sync", "k": 1}
    return httpx.post(f"{address}/retrieve", json=body, timeout=WAIT_S)


def version(address: str, stream: str) -> int | None:
    answer = httpx.get(f"{address}/admin/streams/{stream}", timeout=WAIT_S)
    return answer.json()["version"] if answer.is_success else None


@pytest.mark.parametrize(("cycle", "kind"), list(enumerate(KINDS)))
def test_every_stream_goes_on_after_a_fault(storm: Storm, cycle: int, kind: str) -> None:
    assert run_cycle(storm.chaos, storm.load, kind).stuck == []
    assert storm.load.tally.trouble == []


def test_a_batch_that_is_in_the_queue_twice_adapts_once(storm: Storm) -> None:
    """A copy of its entry, as a sender that repeats itself would leave it."""
    (address, *_), keys = [api.address for api in storm.cluster.apis if api.ready], storm.cluster.keys
    queue = keys.queue(partition_of("twice"))
    workers = [worker for worker in storm.cluster.workers if worker.alive]
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(sync(address, "twice")))
    with storm.cluster.redis.client() as client:
        for worker in workers:
            worker.pause()
        known = {entry for entry, _ in client.xrange(queue)}
        asking.start()

        def copied() -> bool:
            for entry, fields in client.xrange(queue):
                if entry not in known and b"twice" in fields[b"job"]:
                    client.xadd(queue, fields)
                    client.incrby(keys.waiting, 64)
                    return True
            return False

        assert until(copied, WAIT_S)
    for worker in workers:
        worker.resume()
    asking.join()
    assert answers[0].json()["adaptation"]["state_version"] == 1
    assert version(address, "twice") == 1
    assert sync(address, "twice").json()["adaptation"]["state_version"] == 2


def test_without_redis_an_api_process_says_503_and_when_to_come_back_and_recovers(storm: Storm) -> None:
    address = next(api.address for api in storm.cluster.apis if api.ready)
    storm.cluster.redis.pause()
    try:
        refusal = sync(address, "patient")
    finally:
        storm.cluster.redis.resume()
    assert refusal.status_code == 503
    assert int(refusal.headers["retry-after"]) >= 1
    assert refusal.json()["error"]["code"] in ("queue_unreachable", "not_ready")
    assert until(lambda: sync(address, "patient").is_success, WAIT_S)


def test_a_worker_that_is_stopped_hands_its_streams_over(storm: Storm) -> None:
    assert run_cycle(storm.chaos, storm.load, "worker stopped").stuck == []
    assert storm.load.tally.trouble == []


def test_in_the_end_nothing_is_left_over_lost_or_doubled(storm: Storm) -> None:
    storm.load.finish()
    assert come_to_rest(storm.cluster) == {}
    check_gatherings(storm.cluster, storm.load)
    tally = storm.load.tally
    assert (tally.lost, tally.doubled, tally.trouble) == (0, 0, [])
    assert sum(tally.sent.values()) == tally.answered + sum(tally.failed.values())
    assert "deadline_exceeded" not in tally.failed
    assert any(deed.action == "sync" for client in storm.load.clients for deed in client.history)


def test_every_state_is_bit_equal_to_that_of_an_undisturbed_run(storm: Storm) -> None:
    storm.load.finish()
    threads = torch.get_num_threads()
    try:
        checks = compare(storm.cluster, storm.load)
    finally:
        torch.set_num_threads(threads)
    assert sum(len(found) for found in checks.values()) >= 4
    assert {name: found for name, found in checks.items() if any(found)} == {}


@pytest.fixture(scope="module")
def alone() -> Iterator[Cluster]:
    """One process of role `all`, and its Redis."""
    with cluster(apis=0, workers=0) as running:
        running.start("all").wait_until_ready()
        yield running


@pytest.mark.parametrize("gone", ["paused", "killed"])
def test_without_redis_the_source_model_answers_and_says_so_and_learning_resumes(
    alone: Cluster, gone: str
) -> None:
    address, stream = alone.apis[0].address, f"stream-{gone}"
    assert sync(address, stream).json()["adaptation"]["state_version"] == 1
    assert until(lambda: version(address, stream) == 1, WAIT_S)
    if gone == "paused":
        alone.redis.pause()
    else:
        alone.redis.kill()
    try:
        answer = sync(address, stream).json()
    finally:
        if gone == "paused":
            alone.redis.resume()
        else:
            alone.redis.start()
    assert len(answer["results"]) == 64
    assert (answer["adaptation"]["method"], answer["adaptation"]["status"]) == ("source", "skipped")
    assert "Redis does not answer" in answer["adaptation"]["reason"]
    assert until(lambda: sync(address, stream).json()["adaptation"]["state_version"] == 2, WAIT_S)
