"""Jobs that the worker has taken to answer together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.batches.base import Batch
from service.messages import Adaptation, Job, QueryJob, Status, Timings
from service.metrics import Metrics


@dataclass(frozen=True)
class Taken:
    """Jobs of one batch group, and the batch that they make. at: time.monotonic()."""

    jobs: Sequence[QueryJob]
    batch: Batch
    at: float

    def results(
        self,
        answered: Any,
        metrics: Metrics,
        *,
        method: str,
        version: int,
        status: Status,
        reason: str,
    ) -> list[tuple[Job, Any]]:
        """One answer a job; the metrics are told."""
        mode, direction = self.jobs[0].mode, self.jobs[0].key.direction
        adaptation = Adaptation(method, mode, direction, version, status, reason, self.batch.size)
        now = time.monotonic()
        timings = [self._timings(job, now) for job in self.jobs]
        answers = self.batch.answers(self.jobs, answered, adaptation, timings)
        for job, times in zip(self.jobs, timings, strict=True):
            metrics.observe_answer(
                mode=mode, direction=direction, status=status, timings=times, queries=job.items, method=method
            )
        return list(zip(self.jobs, answers, strict=True))

    def _timings(self, job: QueryJob, now: float) -> Timings:
        times = self.batch.times
        return Timings(
            wait_ms=(self.at - job.accepted_at) * 1e3,
            encode_ms=times.encode_ms,
            search_ms=times.search_ms,
            adapt_ms=times.adapt_ms,
            total_ms=(now - job.accepted_at) * 1e3,
        )
