"""The query stream waiting for the worker. Two ends: `put` for the routes, the rest for the worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from service.messages import Job


class JobQueue(Protocol):
    """Bounded in items, not in requests. Jobs of one stream are taken in the order they were put."""

    def put(self, jobs: Sequence[Job]) -> list[Future[Any]]:
        """Admit all jobs or none; one future each, which is settled exactly once.

        Cancelling a future withdraws its job if the worker has not taken it yet. Raises QueueFull,
        NotReady (closed).
        """

    def take(
        self, *, max_items: int, max_wait_s: float, timeout_s: float, accept: Callable[[Job], bool]
    ) -> list[Job]:
        """The next control job alone, or the next retrieve jobs of one batch group.

        Waits up to `timeout_s` for a first job that `accept` admits (a job that is passed over holds
        back the later ones of its stream), then up to `max_wait_s` for company up to `max_items` queries.
        Empty: nothing in time, or closed and drained.
        """

    def settle(self, job: Job, answer: Any) -> None:
        """Hand the answer to whoever waits. A second settlement of the same job is ignored."""

    def fail(self, job: Job, error: Exception) -> None:
        """Hand the error to whoever waits."""

    def depth(self) -> int:
        """Items waiting, those taken not included."""

    def wake(self) -> None:
        """Let a waiting `take` return at once."""

    def close(self) -> None:
        """Admit nothing more; what was admitted can still be taken."""

    @property
    def closed(self) -> bool: ...
