"""The in-process queue: one lock, one list, one future per job."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from service.errors import DeadlineExceeded, NotReady, QueueFull
from service.messages import Job, QueryJob, batch_group, stream_of
from service.queue.base import Settlement

_RATE_SMOOTHING = 0.2
_LONGEST_RETRY_S = 60.0


@dataclass(frozen=True)
class _Entry:
    job: Job
    future: Future[Any]


class MemoryQueue:
    def __init__(self, *, capacity_items: int) -> None:
        self._capacity = capacity_items
        self._changed = threading.Condition()
        self._waiting: list[_Entry] = []
        self._later: deque[_Entry] = deque()
        self._items = 0
        self._taken: dict[str, Future[Any]] = {}
        self._closed = False
        self._woken = False
        self._rate = 0.0  # items settled per second, smoothed
        self._settled_at = time.monotonic()

    # -- the routes' end ----------------------------------------------------------------------------

    def put(self, jobs: Sequence[Job]) -> list[Future[Any]]:
        asked = sum(job.items for job in jobs)
        with self._changed:
            if self._closed:
                raise NotReady("shutting down")
            if asked and self._items + asked > self._capacity:
                raise QueueFull(
                    f"the queue holds {self._items} of {self._capacity} items; {asked} more do not fit",
                    retry_after_s=self._retry_after_s(),
                    details={"depth": self._items, "capacity": self._capacity, "asked": asked},
                )
            entries = [_Entry(job, Future()) for job in jobs]
            self._waiting.extend(entries)
            self._items += asked
            self._changed.notify_all()
        return [entry.future for entry in entries]

    def put_later(self, jobs: Sequence[Job]) -> None:
        """Jobs that give way to all others and that nobody waits for. They count no items."""
        with self._changed:
            self._later.extend(_Entry(job, Future()) for job in jobs)
            self._changed.notify_all()

    async def ask(self, jobs: Sequence[Job], *, timeout_s: float) -> list[Any]:
        """Put the jobs, wait for all. When the caller leaves, what is not yet taken is withdrawn."""
        futures = self.put(jobs)
        try:
            async with asyncio.timeout(timeout_s):
                return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout_s:.1f} s") from None
        finally:
            for future in futures:
                _withdraw(future)

    def depth(self) -> int:
        return self._items

    def waiting_by_stream(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        with self._changed:
            for entry in self._waiting:
                stream = stream_of(entry.job)
                if stream is not None and isinstance(entry.job, QueryJob) and not entry.future.cancelled():
                    counts[stream] += entry.job.items
        return dict(counts)

    def pressure(self) -> float:
        return self._items / self._capacity

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    # -- the worker's end ---------------------------------------------------------------------------

    def take(
        self, *, max_items: int, max_wait_s: float, timeout_s: float, accept: Callable[[Job], bool]
    ) -> list[Job]:
        with self._changed:
            first = self._wait_for_first(timeout_s, accept)
            if first is None:
                return []
            if not isinstance(first.job, QueryJob):
                return self._claim([first])
            batch = self._company(first, max_items)
            until = time.monotonic() + max_wait_s
            while sum(e.job.items for e in batch) < max_items and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
                self._drop_settled()
                if first not in self._waiting:  # its client left while it waited for company
                    return []
                batch = self._company(first, max_items)
            return self._claim(batch)

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def answer_early(self, results: Sequence[tuple[Job, Any]]) -> None:
        for job, result in results:
            self._resolve(job, result)

    def settle(self, settlement: Settlement) -> None:
        """States are the stream store's own business here: it keeps them on disk."""
        self.answer_early(settlement.results)

    def leave(self, jobs: Sequence[Job], error: Exception) -> None:
        self.answer_early([(job, error) for job in jobs])

    def forget(self, jobs: Sequence[Job]) -> None:
        """Jobs that were taken are answered elsewhere."""
        for job in jobs:
            self._forget(job)

    def purge(self, leaves: Callable[[Job], bool]) -> list[Job]:
        """Drop the waiting jobs that `leaves` names; nobody waits for them here."""
        with self._changed:
            gone = [entry for entry in self._waiting if leaves(entry.job)]
            if gone:
                chosen = {id(entry) for entry in gone}
                self._waiting = [entry for entry in self._waiting if id(entry) not in chosen]
                self._items -= sum(entry.job.items for entry in gone)
        return [entry.job for entry in gone]

    # -- inside the lock ----------------------------------------------------------------------------

    def _wait_for_first(self, timeout_s: float, accept: Callable[[Job], bool]) -> _Entry | None:
        until = time.monotonic() + timeout_s
        while True:
            self._drop_settled()
            first = self._first_acceptable(accept) or self._first_of_later(accept)
            if first is not None:
                return first
            left = until - time.monotonic()
            if left <= 0 or self._woken or (self._closed and not self._waiting):
                self._woken = False
                return None
            self._changed.wait(left)

    def _first_acceptable(self, accept: Callable[[Job], bool]) -> _Entry | None:
        held_back: set[str] = set()
        for entry in self._waiting:
            stream = stream_of(entry.job)
            if stream is not None and stream in held_back:
                continue
            if accept(entry.job):
                return entry
            if stream is not None:
                held_back.add(stream)
        return None

    def _first_of_later(self, accept: Callable[[Job], bool]) -> _Entry | None:
        if self._closed or not self._later or not accept(self._later[0].job):
            return None
        return self._later.popleft()

    def _company(self, first: _Entry, max_items: int) -> list[_Entry]:
        """`first` and the later jobs of its batch group, whole jobs only, up to `max_items` queries."""
        assert isinstance(first.job, QueryJob)
        group, stream = batch_group(first.job), stream_of(first.job)
        batch, items = [first], first.job.items
        for entry in self._waiting[self._waiting.index(first) + 1 :]:
            job = entry.job
            if isinstance(job, QueryJob) and batch_group(job) == group:
                if items + job.items > max_items:
                    break
                batch.append(entry)
                items += job.items
            elif stream is not None and stream_of(job) == stream:
                break  # another job of this stream stands between: order is kept
        return batch

    def _claim(self, entries: list[_Entry]) -> list[Job]:
        chosen = {id(entry) for entry in entries}
        self._waiting = [entry for entry in self._waiting if id(entry) not in chosen]
        claimed: list[Job] = []
        for entry in entries:
            self._items -= entry.job.items
            # From here on the job will be answered; a client that leaves no longer withdraws it.
            if entry.future.set_running_or_notify_cancel():
                self._taken[entry.job.id] = entry.future
                claimed.append(entry.job)
        return claimed

    def _drop_settled(self) -> None:
        """Drop the jobs whose client left, fail those that waited past their deadline."""
        now = time.monotonic()
        kept: list[_Entry] = []
        for entry in self._waiting:
            deadline = entry.job.deadline_at
            if entry.future.cancelled():
                self._items -= entry.job.items
            elif deadline is not None and now > deadline:
                self._items -= entry.job.items
                if entry.future.set_running_or_notify_cancel():
                    entry.future.set_exception(
                        DeadlineExceeded("the deadline passed while the query waited in the queue")
                    )
            else:
                kept.append(entry)
        self._waiting = kept

    def _resolve(self, job: Job, result: Any) -> None:
        future = self._forget(job)
        if future is None:
            return
        with suppress(InvalidStateError):  # settled twice, or the client left meanwhile
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _forget(self, job: Job) -> Future[Any] | None:
        with self._changed:
            now = time.monotonic()
            rate = job.items / max(now - self._settled_at, 1e-3)
            self._rate += _RATE_SMOOTHING * (rate - self._rate)
            self._settled_at = now
            return self._taken.pop(job.id, None)

    def _retry_after_s(self) -> float:
        if self._rate <= 0:
            return 1.0
        return min(max(1.0, self._items / self._rate), _LONGEST_RETRY_S)


def _withdraw(future: Future[Any]) -> None:
    """Cancel what the worker has not taken; read the error of what failed, so that none is reported lost."""
    if not future.cancel() and future.done() and not future.cancelled():
        future.exception()
