"""The query stream between those who ask and the worker: its two ends, and what passes through them.

`Submitter` is the routes' end, `JobQueue` the worker's. In one process `MemoryQueue` is both; between
processes they are service/redis/submitter.py and service/redis/queue.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.messages import Job, QueryJob

ADOPT = "adopt"
"""Action of a control job of the queue's own: take note of what a stream that was taken over has gathered."""


class LostOwnership(Exception):
    """The stream belongs to another worker now, or to nobody. What was to be written was not written."""


@dataclass(frozen=True)
class StateWrite:
    """A stream's state as it is to be stored.

    token       the store's owner token when the stream was read; it must still hold
    data        None deletes it
    card        its description, plain values
    pinned      it never expires
    ungathered  tracks whose gathering leaves with the change
    """

    stream: str
    token: int | None
    data: bytes | None
    card: Mapping[str, Any]
    pinned: bool = False
    ungathered: Sequence[str] = ()


@dataclass(frozen=True)
class GatherWrite:
    """How a track's gathering changes: `join` are appended, then its `drop` oldest jobs leave."""

    stream: str
    token: int | None
    track: str
    drop: int = 0
    join: Sequence[QueryJob] = ()


@dataclass(frozen=True)
class Settlement:
    """What leaves the worker at once: all of it happens, or nothing.

    results    jobs with their answer, or with the exception that they end in; they leave the queue
    finished   jobs that `answer_early` has answered; they leave the queue
    cards      galleries' new descriptions by name; None: the gallery is gone
    """

    results: Sequence[tuple[Job, Any]] = ()
    finished: Sequence[Job] = ()
    state: StateWrite | None = None
    gathering: GatherWrite | None = None
    cards: Mapping[str, Mapping[str, Any] | None] | None = None


class Submitter(Protocol):
    """Where requests go in. All methods run on one event loop."""

    async def ask(self, jobs: Sequence[Job], *, timeout_s: float) -> list[Any]:
        """Admit all jobs or none, and wait for their answers. A caller that is cancelled withdraws its jobs.

        Raises QueueFull, NotReady (closed), QueueUnreachable, DeadlineExceeded, and what the jobs end in.
        """

    def depth(self) -> int:
        """Items accepted and not yet taken; between processes a figure about a second old."""

    def waiting_by_stream(self) -> Mapping[str, int] | None:
        """Queries accepted and not yet taken, by the stream whose state they use; None: not known here."""


class JobQueue(Protocol):
    """Where the worker takes jobs and leaves results. Jobs of a stream are taken in the order they came."""

    def take(
        self, *, max_items: int, max_wait_s: float, timeout_s: float, accept: Callable[[Job], bool]
    ) -> list[Job]:
        """The next control job alone, or the next query jobs of one batch group.

        Waits up to `timeout_s` for a first job that `accept` admits (a job that is passed over holds
        back the later ones of its stream), then up to `max_wait_s` for company up to `max_items` queries.
        Empty: nothing in time, or closed and drained.
        """

    def answer_early(self, results: Sequence[tuple[Job, Any]]) -> None:
        """Hand out answers whose jobs are finished later. Raises LostOwnership, QueueUnreachable."""

    def settle(self, settlement: Settlement) -> None:
        """Hand out results and store what comes with them. A second settlement of a job is ignored.

        Raises LostOwnership, QueueUnreachable: then whoever owns the stream next does the jobs again.
        """

    def leave(self, jobs: Sequence[Job], error: Exception) -> None:
        """These jobs were taken and are not finished here: whoever owns their stream next does them again.

        Where there is nobody else they end in `error`.
        """

    def depth(self) -> int:
        """Items waiting here, those taken not included."""

    def pressure(self) -> float:
        """Items waiting anywhere, as a share of the capacity, 0..1."""

    def wake(self) -> None:
        """Let a waiting `take` return at once."""

    def close(self) -> None:
        """Admit nothing more; what was admitted can still be taken."""

    @property
    def closed(self) -> bool: ...
