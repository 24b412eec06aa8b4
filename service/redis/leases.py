"""Which partitions this worker owns.

A thread of its own renews the leases, takes free partitions up to this worker's share, and gives back what
is beyond it. The leases in Redis decide, not what stands here: every script compares. What stands here is
only what the worker believes, and it is corrected as soon as a script says otherwise.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import redis
import structlog

from service.metrics import LeaseMove
from service.redis.connection import GONE, Clock, Scripts
from service.redis.keys import GROUP, PARTITIONS, Keys, partition_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Lease:
    partition: int
    worker: str
    token: int

    @property
    def value(self) -> str:
        """As it stands in Redis."""
        return f"{self.worker}:{self.token}"


@dataclass(frozen=True)
class Watch:
    """Who wants to know what happens to leases. Called in the threads of `Leases` and of its users."""

    busy: Callable[[int], bool]
    """Whether jobs of a partition are still in hand, which is then not given back yet."""
    dropped: Callable[[Sequence[Lease]], None]
    """They are lost, released or in doubt: nothing of them may be written any more."""
    count: Callable[[LeaseMove, int], None] = lambda move, leases: None


class Leases:
    def __init__(self, client: redis.Redis, keys: Keys, *, worker: str, lease_s: float, clock: Clock) -> None:
        self.worker = worker
        self.up = False
        """Whether Redis answered last time."""
        self.workers = 0
        """Workers alive, as of the last beat."""
        self.waiting = 0
        """Items waiting in Redis, as of the last beat."""
        self._client = client
        self._keys = keys
        self._scripts = Scripts(client)
        self._lease_s = lease_s
        self._clock = clock
        self._held: dict[int, Lease] = {}
        self._draining: frozenset[int] = frozenset()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        """Set when leases were given up, to take them, or others, again at once."""
        self.changed = threading.Event()
        """Set when there are new leases."""
        self._watch = Watch(busy=lambda partition: False, dropped=lambda leases: None)
        self._thread = threading.Thread(target=self._run, name="attune-leases", daemon=True)

    # -- may be called from any thread --------------------------------------------------------------

    def start(self, watch: Watch) -> None:
        self._watch = watch
        self._thread.start()

    def held(self) -> list[Lease]:
        return list(self._held.values())

    def readable(self) -> list[Lease]:
        """Those that new work may be taken from."""
        draining = self._draining
        return [lease for lease in self._held.values() if lease.partition not in draining]

    def holds(self, lease: Lease) -> bool:
        return self._held.get(lease.partition) == lease

    def token(self, stream: str) -> int | None:
        """The token under which this worker owns the stream; None: it does not."""
        lease = self._held.get(partition_of(stream))
        return None if lease is None else lease.token

    def lost(self, lease: Lease) -> None:
        """A script has refused this lease."""
        self._drop([lease], "lost")
        self._hurry.set()

    def in_doubt(self) -> None:
        """Redis did not answer: what was written is not known, so nothing that is held may be relied on."""
        self.up = False
        self._drop(self.held(), "lost")
        self._hurry.set()

    def stop(self) -> None:
        """Give everything back, and leave."""
        self._stopping.set()
        self._hurry.set()
        self._thread.join()
        leaving = self.held()
        try:
            self._release(leaving, leave=True)
        except GONE as error:
            log.warning("leases_run_out", why=str(error))
        self._drop(leaving, "released")

    # -- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._hurry.clear()
            try:
                self._beat()
                self._balance()
            except GONE as error:
                if self.up or self._held:
                    log.warning("redis_gone", why=str(error)[:200])
                self._give_up()
            except Exception:  # without this thread the worker would never own anything again
                log.exception("lease_fault")
                self._give_up()
            else:
                self._hurry.wait(self._lease_s / 3)

    def _give_up(self) -> None:
        self.in_doubt()
        self._stopping.wait(min(0.5, self._lease_s / 3))

    def _beat(self) -> None:
        held = self.held()
        workers, waiting, now_ms, *lost = self._scripts.beat(
            keys=[self._keys.workers, self._keys.waiting, *(self._keys.lease(x.partition) for x in held)],
            args=[self.worker, int(self._lease_s * 1000), *(lease.value for lease in held)],
        )
        if not self.up:
            log.info("redis_there", worker=self.worker)
        self.up, self.workers, self.waiting = True, workers, waiting
        self._clock.set(now_ms)
        self._drop([held[index] for index in lost], "lost")

    def _balance(self) -> None:
        share = -(-PARTITIONS // max(self.workers, 1))
        held = self.held()
        surplus = held[share:]
        self._draining = frozenset(lease.partition for lease in surplus)
        idle = [lease for lease in surplus if not self._watch.busy(lease.partition)]
        if idle:
            self._drop(idle, "released")  # first here, so that nothing is begun on them any more
            self._release(idle)
        if len(held) < share:
            self._acquire(share - len(held))

    def _acquire(self, count: int) -> None:
        offered = [partition for partition in range(PARTITIONS) if partition not in self._held]
        random.shuffle(offered)
        keys = [
            key for p in offered for key in (self._keys.lease(p), self._keys.fence(p), self._keys.queue(p))
        ]
        reply = self._scripts.acquire(keys=keys, args=[self.worker, int(self._lease_s * 1000), GROUP, count])
        gained = [
            Lease(offered[index], self.worker, token)
            for index, token in zip(reply[::2], reply[1::2], strict=True)
        ]
        if gained:
            with self._lock:
                self._held = self._held | {lease.partition: lease for lease in gained}
            self._watch.count("gained", len(gained))
            self.changed.set()
            log.info("leases_gained", worker=self.worker, count=len(gained), workers=self.workers)

    def _release(self, leases: Sequence[Lease], *, leave: bool = False) -> None:
        self._scripts.release(
            keys=[self._keys.workers, *(self._keys.lease(lease.partition) for lease in leases)],
            args=[self.worker if leave else "", *(lease.value for lease in leases)],
        )

    def _drop(self, leases: Sequence[Lease], move: LeaseMove) -> None:
        with self._lock:
            gone = [lease for lease in leases if self._held.get(lease.partition) == lease]
            if not gone:
                return
            lost = {lease.partition for lease in gone}
            self._held = {p: lease for p, lease in self._held.items() if p not in lost}
        self._watch.count(move, len(gone))
        self._watch.dropped(gone)
        log.info(f"leases_{move}", worker=self.worker, count=len(gone))
