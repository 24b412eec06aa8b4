"""The worker's end of the query stream.

A reader thread moves entries of owned partitions into a small buffer in this process (a `MemoryQueue`), where
batches are formed. What the worker settles goes to Redis in one script a partition, which compares the lease
first.

Whenever a script is refused, or Redis does not answer, everything about the partitions in question is
forgotten here. The entries are still in Redis; whoever owns the partition next claims them.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import redis
import structlog

from service.codec import BadMessage, pack_reply, unpack_job
from service.errors import DeadlineExceeded, QueueUnreachable, ServiceError
from service.messages import ControlJob, Job
from service.metrics import Metrics
from service.queue.base import ADOPT, GatherWrite, LostOwnership, Settlement, StateWrite
from service.queue.memory import MemoryQueue
from service.redis import keys as layout
from service.redis.connection import GONE, Clock, Scripts
from service.redis.keys import GROUP, Keys, partition_of
from service.redis.leases import Lease, Leases, Watch

log = structlog.get_logger(__name__)

_BELL_S = 0.5
_CLAIM_COUNT = 64
_READ_COUNT = 16
_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class Limits:
    """capacity and prefetch in items; ttl 0: for ever."""

    capacity_items: int
    prefetch_items: int
    max_attempts: int
    stream_ttl_s: int


@dataclass(frozen=True)
class _Entry:
    """Where a job in hand stands in Redis. One delivery: delivered again, a job is another object."""

    job: Job
    id: bytes
    lease: Lease
    reply_to: str


@dataclass(frozen=True)
class _Reply:
    api: str
    job: str
    data: bytes


@dataclass(frozen=True)
class _Group:
    """What is written under one lease."""

    replies: list[_Reply] = field(default_factory=list)
    finished: list[Job] = field(default_factory=list)


class _Bells:
    """The bells of the partitions that are read, each with its turn to be heard first."""

    def __init__(self, leases: Sequence[Lease], names: Keys) -> None:
        self.leases = list(leases)
        self._of_bell = {names.bell(lease.partition): lease for lease in leases}
        self._order = list(self._of_bell)

    def wait(self, client: redis.Redis) -> Lease | None:
        """Whose bell has rung; None: none did for a while."""
        heard: Any = client.blpop(self._order, timeout=_BELL_S)
        if heard is None:
            return None
        bell = heard[0].decode()
        after = self._order.index(bell) + 1
        self._order = self._order[after:] + self._order[:after]
        return self._of_bell[bell]


class RedisQueue:
    def __init__(
        self,
        *,
        client: redis.Redis,
        reader: redis.Redis,
        keys: Keys,
        leases: Leases,
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        """`reader` is a client of its own, because it waits for bells."""
        self._keys = keys
        self._leases = leases
        self._clock = clock
        self._limits = limits
        self._scripts = Scripts(client)
        self._client = client
        self._reader = reader
        self._reader_scripts = Scripts(reader)
        self._metrics = metrics
        self.local = MemoryQueue(capacity_items=1 << 40)
        """Also takes jobs of this process that go past Redis."""
        self._entries: dict[int, _Entry] = {}  # by identity of the job
        self._in_hand: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._expired: deque[Job] = deque()
        self._room = threading.Event()
        self._bells: _Bells | None = None
        self._read_all_at = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="attune-reader", daemon=True)

    def start(self) -> None:
        watch = Watch(busy=self._busy, dropped=self._dropped, count=self._metrics.count_lease_move)
        self._leases.start(watch)
        self._thread.start()

    # -- the worker's end ---------------------------------------------------------------------------

    def take(
        self, *, max_items: int, max_wait_s: float, timeout_s: float, accept: Callable[[Job], bool]
    ) -> list[Job]:
        jobs = self.local.take(max_items=max_items, max_wait_s=max_wait_s, timeout_s=timeout_s, accept=accept)
        self._room.set()
        self._fail_expired()
        return self._begin(jobs) if jobs else []

    def answer_early(self, results: Sequence[tuple[Job, Any]]) -> None:
        self._write(Settlement(results=results), finish=False)

    def settle(self, settlement: Settlement) -> None:
        self._write(settlement, finish=True)

    def depth(self) -> int:
        return self.local.depth()

    def pressure(self) -> float:
        return max(self._leases.waiting, self.local.depth()) / self._limits.capacity_items

    def wake(self) -> None:
        self.local.wake()

    def close(self) -> None:
        """Take nothing more from Redis; what has not been begun is left to the next owner."""
        self._closed = True
        self._room.set()
        self._thread.join()
        self._forget(self.local.purge(lambda job: id(job) in self._entries))
        self.local.close()

    @property
    def closed(self) -> bool:
        return self._closed

    # -- beginning ----------------------------------------------------------------------------------

    def _begin(self, jobs: Sequence[Job]) -> list[Job]:
        """Those of the jobs that are still to be done, once it is certain that they are ours."""
        groups: dict[Lease, list[Job]] = {}
        # By identity: delivered under an old lease and under a new one, a job is there twice.
        ready = {id(job) for job in jobs if id(job) not in self._entries}
        for job in jobs:
            entry = self._entries.get(id(job))
            if entry is not None:
                groups.setdefault(entry.lease, []).append(job)
        for lease, group in groups.items():
            try:
                ready.update(id(job) for job in self._begin_group(lease, group))
            except (LostOwnership, QueueUnreachable) as error:
                log.info("jobs_left_to_the_next_owner", jobs=len(group), why=str(error))
                self._forget(group)
        return [job for job in jobs if id(job) in ready]

    def _begin_group(self, lease: Lease, jobs: Sequence[Job]) -> list[Job]:
        entries = [self._entries[id(job)].id for job in jobs]
        p = lease.partition
        attempts = self._call(
            "begin",
            lease,
            keys=[
                self._keys.lease(p),
                self._keys.withdrawn(p),
                self._keys.attempts(p),
                self._keys.queue(p),
            ],
            args=[lease.value, GROUP, *entries],
        )
        ready: list[Job] = []
        for job, count in zip(jobs, attempts, strict=True):
            if count == 0:
                self._metrics.count_dropped("cancelled", job.items)
                self._forget([job])
            elif count > self._limits.max_attempts:
                error = ServiceError(f"{count - 1} workers began this and none finished it", code="worn_out")
                self.settle(Settlement(results=[(job, error)]))
            else:
                ready.append(job)
        return ready

    def _fail_expired(self) -> None:
        while self._expired:
            job = self._expired.popleft()
            self._metrics.count_dropped("expired", job.items)
            error = DeadlineExceeded("the deadline passed while the query waited in the queue")
            with suppress(LostOwnership, QueueUnreachable):
                self.settle(Settlement(results=[(job, error)]))

    # -- writing ------------------------------------------------------------------------------------

    def leave(self, jobs: Sequence[Job], error: Exception) -> None:
        ours = [entry for job in jobs if (entry := self._entries.get(id(job))) is not None]
        self.local.leave([job for job in jobs if id(job) not in self._entries], error)
        self._forget(entry.job for entry in ours)
        if not self._closed:
            for lease in {entry.lease for entry in ours}:  # only under a new lease is a job delivered again
                self._leases.lost(lease)

    def _write(self, settlement: Settlement, *, finish: bool) -> None:
        """One script a partition. A settlement with a state or a gathering concerns one partition only."""
        owner = self._owner(settlement)
        if owner is None:
            self._answer_local(settlement)
            groups = self._groups(settlement, finish=finish)
        else:
            groups = {owner: _Group()} | self._groups(settlement, finish=finish)
            if len(groups) > 1 or not self._all_in_hand(settlement):
                self._forget(job for group in groups.values() for job in group.finished)
                # The stream in memory holds what is not stored; under a new lease it is read again.
                self._leases.lost(owner)
                raise LostOwnership(f"partition {owner.partition} has changed hands meanwhile")
        trouble: Exception | None = None
        for lease, group in groups.items():
            try:
                self._write_group(lease, group, settlement)
            except (LostOwnership, QueueUnreachable) as error:
                trouble = error
            finally:
                self._forget(group.finished)
        if trouble is not None:
            raise trouble

    def _answer_local(self, settlement: Settlement) -> None:
        """Results of jobs that never were in Redis."""
        self.local.answer_early(
            [(job, result) for job, result in settlement.results if id(job) not in self._entries]
        )

    def _groups(self, settlement: Settlement, *, finish: bool) -> dict[Lease, _Group]:
        """What there is to write, by the lease under which the jobs were delivered."""
        groups: dict[Lease, _Group] = {}
        for job, result in settlement.results:
            entry = self._entries.get(id(job))
            if entry is not None:
                group = groups.setdefault(entry.lease, _Group())
                group.replies.append(_Reply(entry.reply_to, job.id, pack_reply(result)))
                if finish:
                    group.finished.append(job)
        for job in settlement.finished:
            entry = self._entries.get(id(job))
            if entry is not None:
                groups.setdefault(entry.lease, _Group()).finished.append(job)
        return groups

    def _all_in_hand(self, settlement: Settlement) -> bool:
        """Whether the jobs that the state rests on are still this worker's to finish."""
        joining = settlement.gathering.join if settlement.gathering else ()
        jobs = [*(job for job, _ in settlement.results), *settlement.finished, *joining]
        return all(id(job) in self._entries for job in jobs)

    def _owner(self, settlement: Settlement) -> Lease | None:
        """The lease under which a state or gathering is written; None: there is none to write."""
        write: StateWrite | GatherWrite | None = settlement.state or settlement.gathering
        if write is None:
            return None
        if write.token is None:
            raise LostOwnership(f"stream {write.stream!r} is not this worker's")
        return Lease(partition_of(write.stream), self._leases.worker, write.token)

    def _write_group(self, lease: Lease, group: _Group, settlement: Settlement) -> None:
        keys, arguments = self._arguments(lease, group.replies, group.finished, settlement)
        self._call("settle", lease, keys=keys, args=arguments)

    def _arguments(
        self, lease: Lease, replies: Sequence[_Reply], finished: Sequence[Job], settlement: Settlement
    ) -> tuple[list[str], list[Any]]:
        """Keys and arguments of settle.lua, in its order."""
        names, p = self._keys, lease.partition
        state, gathering = settlement.state, settlement.gathering
        stream = state.stream if state else gathering.stream if gathering else ""
        gathering_name = f"{stream}/{gathering.track}" if gathering else ""
        keys = [
            names.lease(p), names.queue(p), names.waiting, names.withdrawn(p), names.attempts(p),
            names.streams, names.gatherings(p), names.galleries, names.stream(stream),
            names.gathering(stream, gathering.track if gathering else ""),
        ]  # fmt: skip
        ttl_s = 0 if state is None or state.pinned else self._limits.stream_ttl_s
        arguments: list[Any] = [
            lease.value, GROUP, stream, _action(state), (state and state.data) or b"",
            json.dumps(state.card) if state else "", ttl_s,
            gathering_name, gathering.drop if gathering else 0, layout.GATHERING_TTL_S,
            layout.API_ALIVE_MS, names.apis, layout.MAX_RESULTS, layout.RESULTS_TTL_MS,
        ]  # fmt: skip

        def listed(rows: Sequence[Sequence[Any]]) -> None:
            arguments.append(len(rows))
            for row in rows:
                arguments.extend(row)

        places: dict[str, int] = {}
        for reply in replies:
            if reply.api not in places:
                keys.append(names.results(reply.api))
                places[reply.api] = len(keys)
        listed([(places[reply.api], reply.api, reply.job, reply.data) for reply in replies])
        listed([(self._entries[id(job)].id, job.items) for job in finished])
        joining = gathering.join if gathering else ()
        listed([(self._entries[id(job)].id,) for job in joining if id(job) in self._entries])
        dropped = []
        for track in state.ungathered if state else ():
            keys.append(names.gathering(stream, track))
            dropped.append((len(keys), f"{stream}/{track}"))
        listed(dropped)
        cards = settlement.cards or {}
        listed([(name, "" if card is None else json.dumps(card)) for name, card in cards.items()])
        return keys, arguments

    def _call(self, script: str, lease: Lease, **what: Any) -> Any:
        if not self._leases.holds(lease):
            # Given up here, it may still stand in Redis. But streams loaded under it have left memory, and
            # without the state that belongs to it a job must not be finished.
            raise LostOwnership(f"partition {lease.partition} was given up")
        try:
            reply = getattr(self._scripts, script)(**what)
        except GONE as error:
            self._metrics.count_redis_error()
            self._leases.in_doubt()
            raise QueueUnreachable(f"Redis does not answer: {error}") from error
        if reply in (None, b"lost"):
            self._leases.lost(lease)
            raise LostOwnership(f"partition {lease.partition} is not this worker's any more")
        return reply

    # -- what is in hand ----------------------------------------------------------------------------

    def _busy(self, partition: int) -> bool:
        return self._in_hand[partition] > 0

    def _dropped(self, leases: Sequence[Lease]) -> None:
        """Forget what waits here of partitions that are not ours any more."""
        gone = set(leases)

        def of_gone(job: Job) -> bool:
            entry = self._entries.get(id(job))
            return entry is not None and entry.lease in gone

        self._forget(self.local.purge(of_gone))

    def _forget(self, jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        with self._lock:
            for job in jobs:
                entry = self._entries.pop(id(job), None)
                if entry is not None:
                    self._in_hand[entry.lease.partition] -= 1
        self.local.forget(jobs)

    # -- the reader ---------------------------------------------------------------------------------

    def _run(self) -> None:
        claimed: set[Lease] = set()
        while not self._closed:
            leases = self._leases.readable()
            if not leases:
                self._leases.changed.wait(0.1)
                self._leases.changed.clear()
                continue
            try:
                # Not only those that may be read: what is in hand of the others is not to be claimed again.
                claimed &= set(self._leases.held())
                for lease in leases:
                    if lease not in claimed and self._claim(lease):
                        claimed.add(lease)
                if self.local.depth() >= self._limits.prefetch_items:
                    self._room.clear()
                    self._room.wait(0.05)
                else:
                    self._listen([lease for lease in leases if lease in claimed])
            except GONE as error:
                log.warning("reading_failed", why=str(error)[:200])
                self._leases.in_doubt()
            except Exception:
                log.exception("reader_fault")
                self._leases.in_doubt()

    def _claim(self, lease: Lease) -> bool:
        """Take over what the former owner left, oldest first; then its gatherings. False: lost meanwhile."""
        p = lease.partition
        start: Any = "0-0"
        while True:
            reply = self._reader_scripts.claim(
                keys=[self._keys.lease(p), self._keys.queue(p), self._keys.attempts(p)],
                args=[lease.value, GROUP, lease.worker, start, _CLAIM_COUNT],
            )
            if reply is None:
                self._leases.lost(lease)
                return False
            start, *entries = reply
            if entries:
                self._metrics.count_redelivery(len(entries) // 3)
            self._deliver(lease, zip(entries[::3], entries[1::3], entries[2::3], strict=True))
            if start == b"0-0":
                break
        members: Any = self._reader.zrange(self._keys.gatherings(p), 0, -1)
        streams = sorted({member.decode().partition("/")[0] for member in members})
        self.local.put_later([ControlJob(ADOPT, stream=stream) for stream in streams])
        return True

    def _listen(self, leases: Sequence[Lease]) -> None:
        """Wait for a bell, then read where it rings.

        Now and then everything is read: a bell is lost with a process that dies between hearing it and
        reading.
        """
        if not leases:
            return
        if self._bells is None or self._bells.leases != leases:
            self._bells = _Bells(leases, self._keys)
            self._read_all_at = 0.0
        heard = self._bells.wait(self._reader) if time.monotonic() < self._read_all_at else None
        if heard is None:
            self._read_all_at = time.monotonic() + _BELL_S
        self._read(leases if heard is None else [heard])

    def _read(self, leases: Sequence[Lease]) -> None:
        names = self._keys
        reply = self._reader_scripts.read(
            keys=[
                k
                for x in leases
                for k in (names.lease(x.partition), names.queue(x.partition), names.bell(x.partition))
            ],
            args=[GROUP, self._leases.worker, _READ_BYTES, _READ_COUNT, *(lease.value for lease in leases)],
        )
        rows = list(zip(reply[::3], reply[1::3], reply[2::3], strict=True))
        for index, entry, payload in rows:
            if index < 0:
                self._leases.lost(leases[-1 - index])
            else:
                self._deliver(leases[index], [(entry, payload, 0)])

    def _deliver(self, lease: Lease, entries: Iterable[tuple[bytes, bytes, int]]) -> None:
        for entry_id, data, begun in entries:
            try:
                posted = unpack_job(data)
            except BadMessage as error:
                log.exception("message_refused", partition=lease.partition, why=str(error))
                self._refuse(lease, entry_id)
                continue
            job = posted.job(shift_s=self._clock.shift_s)
            if begun:
                # Its answer may have left before its last update: it is done, however late it is.
                job = replace(job, again=True, deadline_at=None)
            with self._lock:
                self._entries[id(job)] = _Entry(job, entry_id, lease, posted.reply_to)
                self._in_hand[lease.partition] += 1
            (future,) = self.local.put([job])
            future.add_done_callback(partial(self._note_expiry, job))
        if not self._leases.holds(lease):
            self._dropped([lease])  # it was lost while they were on their way

    def _refuse(self, lease: Lease, entry_id: bytes) -> None:
        """What cannot be read leaves the queue; there is nobody to tell."""
        p = lease.partition
        found: Any = self._reader.xrange(self._keys.queue(p), entry_id, entry_id)
        for _, fields in found:
            self._reader_scripts.withdraw(
                keys=[
                    self._keys.waiting,
                    self._keys.queue(p),
                    self._keys.withdrawn(p),
                    self._keys.attempts(p),
                ],
                args=[entry_id, fields[b"items"], GROUP, 1],
            )

    def _note_expiry(self, job: Job, future: Future[Any]) -> None:
        """Called by the buffer, which only fails jobs whose deadline has passed."""
        with suppress(CancelledError):
            if isinstance(future.exception(), DeadlineExceeded) and id(job) in self._entries:
                self._expired.append(job)


def _action(state: StateWrite | None) -> str:
    if state is None:
        return ""
    return "delete" if state.data is None else "write"
