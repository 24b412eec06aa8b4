"""The in-process queue: bounded, ordered, each job settled once."""

from __future__ import annotations

import threading
import time

import pytest

from service.errors import DeadlineExceeded, NotReady, QueueFull
from service.messages import ControlJob, Job, Mode, Query, RetrieveJob, TrackKey
from service.queue.base import Settlement
from service.queue.memory import MemoryQueue


def job(stream: str = "a", *, items: int = 1, mode: Mode = "async", **more: object) -> RetrieveJob:
    key = TrackKey(stream, "g", "text", "image")
    return RetrieveJob(key=key, mode=mode, queries=(Query(text="x"),) * items, k=1, **more)  # type: ignore[arg-type]


def take(queue: MemoryQueue, *, max_items: int = 64, **more: object) -> list[Job]:
    options: dict[str, object] = {"max_wait_s": 0.0, "timeout_s": 0.0, "accept": lambda job: True, **more}
    return queue.take(max_items=max_items, **options)  # type: ignore[arg-type]


def test_jobs_of_one_group_are_taken_together_in_order() -> None:
    queue = MemoryQueue(capacity_items=10)
    first, other, second = job("a"), job("b"), job("a")
    queue.put([first, other, second])
    assert take(queue) == [first, second]
    assert take(queue) == [other]
    assert take(queue) == []


def test_a_batch_holds_whole_jobs_and_at_most_max_items() -> None:
    queue = MemoryQueue(capacity_items=100)
    jobs = [job(items=40), job(items=30), job(items=20)]
    queue.put(jobs)
    assert take(queue, max_items=64) == jobs[:1]
    assert take(queue, max_items=64) == jobs[1:]


def test_queries_without_a_stream_state_share_a_batch_across_streams() -> None:
    queue = MemoryQueue(capacity_items=10)
    jobs = [job("a", mode="off"), job("b", mode="off")]
    queue.put(jobs)
    assert take(queue) == jobs


def test_a_control_job_is_never_overtaken_by_its_streams_queries() -> None:
    queue = MemoryQueue(capacity_items=10)
    before, reset, after = job("a"), ControlJob("reset", stream="a"), job("a")
    queue.put([before, reset, after])
    assert take(queue) == [before]
    assert take(queue) == [reset]
    assert take(queue) == [after]


def test_a_job_passed_over_holds_back_its_stream_but_no_other() -> None:
    queue = MemoryQueue(capacity_items=10)
    sync, late, other = job("a", mode="sync"), job("a"), job("b")
    queue.put([sync, late, other])

    def accept(job: Job) -> bool:
        return isinstance(job, RetrieveJob) and job.mode != "sync"

    assert take(queue, accept=accept) == [other]
    assert take(queue, accept=accept) == []
    assert take(queue) == [sync]


def test_waiting_queries_are_counted_by_the_stream_whose_state_they_use() -> None:
    queue = MemoryQueue(capacity_items=20)
    gone = queue.put([job("a", items=3)])[0]
    queue.put([job("a", items=2), job("b"), job("c", mode="off"), ControlJob("reset", stream="d")])
    assert queue.waiting_by_stream() == {"a": 5, "b": 1}
    gone.cancel()  # its client left
    assert queue.waiting_by_stream() == {"a": 2, "b": 1}
    take(queue)
    assert queue.waiting_by_stream() == {"b": 1}


def test_admission_counts_items_and_takes_all_jobs_or_none() -> None:
    queue = MemoryQueue(capacity_items=5)
    queue.put([job(items=4)])
    with pytest.raises(QueueFull) as refusal:
        queue.put([job(items=1), job(items=1)])
    assert refusal.value.retry_after_s >= 1
    assert queue.depth() == 4
    queue.put([job(items=1)])
    assert queue.depth() == 5


def test_a_control_job_fits_into_a_full_queue() -> None:
    queue = MemoryQueue(capacity_items=1)
    queue.put([job()])
    queue.put([ControlJob("reset", stream="a")])
    assert queue.depth() == 1


def test_a_job_whose_client_left_is_dropped() -> None:
    queue = MemoryQueue(capacity_items=5)
    (gone,) = queue.put([job(items=3)])
    stays = job()
    queue.put([stays])
    gone.cancel()
    assert take(queue) == [stays]
    assert queue.depth() == 0


def test_a_job_past_its_deadline_fails_and_is_not_taken() -> None:
    queue = MemoryQueue(capacity_items=5)
    (future,) = queue.put([job(deadline_at=time.monotonic() - 1)])
    assert take(queue) == []
    assert isinstance(future.exception(timeout=0), DeadlineExceeded)
    assert queue.depth() == 0


def test_the_first_settlement_counts() -> None:
    queue = MemoryQueue(capacity_items=5)
    one = job()
    (future,) = queue.put([one])
    take(queue)
    queue.settle(Settlement(results=[(one, "answer")]))
    queue.settle(Settlement(results=[(one, RuntimeError("late"))]))
    assert future.result(timeout=0) == "answer"


def test_a_closed_queue_admits_nothing_but_can_be_drained() -> None:
    queue = MemoryQueue(capacity_items=5)
    waiting = job()
    queue.put([waiting])
    queue.close()
    with pytest.raises(NotReady):
        queue.put([job()])
    assert take(queue, timeout_s=5.0) == [waiting]
    assert take(queue, timeout_s=5.0) == []


def test_a_waiting_taker_is_woken_by_the_next_job() -> None:
    queue = MemoryQueue(capacity_items=5)
    taken: list[list[Job]] = []
    taker = threading.Thread(target=lambda: taken.append(take(queue, timeout_s=30.0)))
    taker.start()
    one = job()
    queue.put([one])
    taker.join(timeout=30)
    assert taken == [[one]]


def test_company_that_comes_within_the_wait_joins_the_batch() -> None:
    queue = MemoryQueue(capacity_items=5)
    first, second = job(), job()
    queue.put([first])
    taken: list[list[Job]] = []
    taker = threading.Thread(target=lambda: taken.append(take(queue, max_items=2, max_wait_s=30.0)))
    taker.start()
    queue.put([second])
    taker.join(timeout=30)
    assert taken == [[first, second]]
